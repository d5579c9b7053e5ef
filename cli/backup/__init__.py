"""Backups: one file with a database's dump and a folder of blobs, made while controllers run, and back again."""
