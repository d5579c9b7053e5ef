"""What runs in the tests' image `tpp-database-utils`: asks the database, and prints the answer as its last line."""

import asyncio
import os
import sys

import asyncpg


async def ask(question: str, *values: str) -> str:
    """The one value that the database has to say."""
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    try:
        return str(await connection.fetchval(question, *values))
    finally:
        await connection.close()


sys.stdout.write("connecting\n")
match sys.argv[1:]:
    case ["in_maintenance_mode"]:
        said = asyncio.run(ask("SELECT mode FROM state"))
    case ["hes_cutoff_date_check", month]:
        said = asyncio.run(ask("SELECT CASE WHEN newest >= $1 THEN 'OK' ELSE 'FAILED' END FROM state", month))
    case words:
        sys.exit(f"unknown command: {words}")
sys.stdout.write(f"{said}\n")
