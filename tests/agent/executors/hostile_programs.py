"""What a hostile job does: real programs that try something and say what came of it.

Every attempt is harmless if it succeeds: a failing test must not take the machine with it. What they need to know about
the host comes in the variable PLAN.
"""

TRY: str = """
import json, os, sys
plan = json.loads(os.environ["PLAN"])
done = {}

def attempt(function):
    "In a process of its own: a filter of system calls may kill whoever tries."
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            os.write(writer, str(function() or "").encode()[:2000])
        except (OSError, ValueError, AttributeError, KeyError, UnicodeError):
            pass
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as found:
        said = found.read().decode(errors="replace")
    os.waitpid(pid, 0)
    if said:
        done[function.__name__] = said

def tell():
    print(json.dumps({"attempts": attempts, "done": done}))

attempts = 0
def attempt_all(functions):
    global attempts
    for function in functions:
        attempts += 1
        attempt(function)
"""
"""Defines `plan`, `attempt_all` and `tell`; an attempt that came to something returns what."""

READ: str = (
    TRY
    + """
import glob

def read(path):
    with open(path, "rb") as file:
        return plan["yranac"][::-1].encode() in file.read(1 << 20)

def by_its_path():
    return any_of(plan["secrets"])

def any_of(paths):
    for path in paths:
        try:
            if read(path):
                return path
        except OSError:
            pass

def by_going_up():
    return any_of(os.path.relpath(path) for path in plan["secrets"])

def by_a_link():
    for number, path in enumerate(plan["secrets"]):
        os.symlink(path, f"link{number}")
    return any_of(f"link{number}" for number in range(len(plan["secrets"])))

def by_a_hard_link():
    for number, path in enumerate(plan["secrets"]):
        try:
            os.link(path, f"hard{number}")
            return path
        except OSError:
            pass

def by_the_root_of_others():
    return any_of(f"{root}{path}" for root in glob.glob("/proc/[0-9]*/root") for path in plan["secrets"])

def by_the_folder_of_others():
    names = [os.path.basename(path) for path in plan["secrets"]]
    return any_of(f"{cwd}/{name}" for cwd in glob.glob("/proc/[0-9]*/cwd") for name in names)

def by_the_files_of_others():
    return any_of(path for path in glob.glob("/proc/[0-9]*/fd/[0-9]*") if os.path.isfile(path))

def environment_of_others():
    return any_of(glob.glob("/proc/[0-9]*/environ"))

def command_line_of_others():
    return any_of(glob.glob("/proc/[0-9]*/cmdline"))

def by_the_disk_itself():
    for path in plan["disks"]:
        try:
            with open(path, "rb") as disk:
                return path if disk.read(1) else ""
        except OSError:
            pass
    major, minor = plan["device"]
    os.mknod("disk", 0o60600, os.makedev(major, minor))
    with open("disk", "rb") as disk:
        return "made device" if disk.read(1) else ""

def processes_that_are_not_ours():
    seen = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return "more than its own" if len(seen) > 20 or plan["victim"] in seen else ""

attempt_all([by_its_path, by_going_up, by_a_link, by_a_hard_link, by_the_root_of_others, by_the_folder_of_others,
             by_the_files_of_others, environment_of_others, command_line_of_others, by_the_disk_itself,
             processes_that_are_not_ours])
tell()
"""
)
"""Reads what is not the job's own: PLAN has `yranac` (the canary backwards, or the job would find its own),
`secrets` (paths), `victim` (a process), `device`, `disks`."""

CONNECT: str = (
    TRY
    + """
import socket

def reach(kind, family, address):
    with socket.socket(family, kind) as mine:
        mine.settimeout(2)
        if kind == socket.SOCK_DGRAM and family != socket.AF_UNIX:
            mine.connect(address)
            mine.send(b"knock")
            return plan["udp_answer"] if mine.recv(100) else ""
        mine.connect(address)
        return str(address)

def attempt_tcp(host):
    def tcp():
        return reach(socket.SOCK_STREAM, socket.AF_INET6 if ":" in host else socket.AF_INET, (host, plan["tcp_port"]))
    tcp.__name__ = f"tcp to {host}"
    return tcp

def attempt_udp(host):
    def udp():
        return reach(socket.SOCK_DGRAM, socket.AF_INET, (host, plan["udp_port"]))
    udp.__name__ = f"udp to {host}"
    return udp

def abstract_socket():
    return reach(socket.SOCK_STREAM, socket.AF_UNIX, chr(0) + plan["abstract"])

def socket_in_a_folder():
    return reach(socket.SOCK_STREAM, socket.AF_UNIX, plan["unix"])

def engine_socket():
    for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock", "/run/munge/munge.socket.2",
                 "/run/systemd/private", "/run/dbus/system_bus_socket"):
        try:
            return reach(socket.SOCK_STREAM, socket.AF_UNIX, path)
        except OSError:
            pass

def raw_packets():
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as mine:
        names = [name for _, name in socket.if_nameindex() if name != "lo"]
        return names[0] if names else ""

def machine_below():
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as mine:
        mine.settimeout(1)
        mine.connect((2, 1024))
        return "connected"

def socket_to_the_machine_below():
    "Whether there is one at all: nobody need listen there now."
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    return "made"

def networks_beside_loopback():
    return ",".join(name for _, name in socket.if_nameindex() if name != "lo" and is_up(name))

def is_up(name):
    "The kernel gives every network namespace some tunnels that lead nowhere while they are down."
    import fcntl, struct
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        flags = fcntl.ioctl(any_socket, 0x8913, struct.pack("16sh14x", name.encode(), 0))
    return struct.unpack_from("h", flags, 16)[0] & 1

def a_name():
    return socket.gethostbyname("example.org")

attempt_all([*map(attempt_tcp, plan["hosts"]), *map(attempt_udp, plan["udp_hosts"]), abstract_socket,
             socket_in_a_folder, engine_socket, raw_packets, machine_below, socket_to_the_machine_below,
             networks_beside_loopback, a_name])
tell()
"""
)
"""Reaches services of the host: PLAN has `tcp_port`, `udp_port`, `hosts`, `udp_hosts`, `abstract`, `unix`."""

MEDDLE: str = (
    TRY
    + """
import ctypes, signal, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
victim, agent = plan["victim"], plan["agent"]

def ok(result):
    return "succeeded" if result == 0 else ""

def kill_a_stranger():
    os.kill(victim, signal.SIGKILL)
    return "killed"

def see_the_agent():
    os.kill(agent, 0)
    return "seen"

def trace_a_stranger():
    return ok(libc.ptrace(0x4206, victim, 0, 0))

def trace_the_agent():
    return ok(libc.ptrace(0x4206, agent, 0, 0))

def memory_of_a_stranger():
    return os.open(f"/proc/{victim}/mem", os.O_RDWR) and "opened"

def change_the_name():
    name = socket.gethostname().encode()
    return ok(libc.sethostname(name, len(name)))

def mount():
    os.makedirs("/tmp/mountpoint", exist_ok=True)
    if libc.mount(b"none", b"/tmp/mountpoint", b"tmpfs", 0, None) == 0:
        libc.umount2(b"/tmp/mountpoint", 2)
        return "mounted"

def unmount():
    return ok(libc.umount2(b"/proc", 2)) if plan["isolated"] else ""

def make_writable():
    return ok(libc.mount(b"none", b"/", None, 32 | 4096, None)) if plan["isolated"] else "skipped"

def change_root():
    os.chroot("/tmp")
    return "changed"

def become_root_of_a_new_namespace():
    if libc.unshare(0x10000000) == 0:
        return "new user namespace"

def new_namespaces():
    return "unshared" if any(libc.unshare(kind) == 0 for kind in (0x20000, 0x20000000, 0x40000000, 0x4000000)) else ""

def join_a_namespace():
    for number in (1, victim, agent):
        for kind in ("mnt", "net", "pid"):
            try:
                fd = os.open(f"/proc/{number}/ns/{kind}", os.O_RDONLY)
            except OSError:
                continue
            if number != 1 and libc.setns(fd, 0) == 0 or libc.setns(fd, 0) == 0:
                return f"{kind} of {number}"

def settings_of_the_kernel():
    for name in ("kernel/core_pattern", "kernel/hostname", "kernel/modprobe", "vm/drop_caches", "kernel/panic"):
        try:
            os.close(os.open(f"/proc/sys/{name}", os.O_WRONLY))
            return name
        except OSError:
            pass

def keys_to_the_kernel():
    os.close(os.open("/proc/sysrq-trigger", os.O_WRONLY))
    return "opened"

def files_of_sysfs():
    for name in ("kernel/mm/ksm/run", "power/state", "kernel/uevent_helper", "module/printk/parameters/time"):
        try:
            os.close(os.open(f"/sys/{name}", os.O_WRONLY))
            return name
        except OSError:
            pass

def own_limits():
    for folder, _, names in os.walk("/sys/fs/cgroup"):
        for name in {"cgroup.procs", "memory.max", "memory.limit_in_bytes", "pids.max"} & set(names):
            try:
                os.close(os.open(f"{folder}/{name}", os.O_WRONLY))
                return f"{folder}/{name}"
            except OSError:
                pass

def more_open_files():
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))
    return "raised"

def core_dumps():
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
    return "raised"

def another_user():
    for user in (0, 1, 65534):
        if user == os.getuid():
            continue
        try:
            os.setresuid(user, user, user)
            return str(user)
        except OSError:
            pass

def first_in_line():
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    return "priority"

def real_time():
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    return "scheduled"

def files_of_the_system():
    for path in ("/usr/bin/planted", "/etc/planted", "/lib/planted", "/bin/planted", "/opt/planted",
                 "/dev/planted"):
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o755))
            os.unlink(path)
            if plan["system_is_shared"]:
                return path
        except OSError:
            pass

def set_the_clock():
    import time
    time.clock_settime(time.CLOCK_REALTIME, time.time())
    return "set"

def load_a_module():
    number = {"x86_64": 313, "aarch64": 273}[os.uname().machine]
    return ok(libc.syscall(number, -1, b"", 0)) or ("asked" if ctypes.get_errno() == 9 else "")

def program_the_kernel():
    number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
    table = struct.pack("4I112x", 1, 4, 4, 1)
    return "made a table" if libc.syscall(number, 0, ctypes.create_string_buffer(table), len(table)) >= 0 else ""

def calls_past_every_filter():
    "Rings of io_uring: calls that are made in there are seen by no filter."
    return "made a ring" if libc.syscall(425, 1, ctypes.create_string_buffer(120)) >= 0 else ""

def files_by_their_handle():
    open("own", "w").close()
    handle, mount = ctypes.create_string_buffer(struct.pack("Ii", 120, 0), 128), ctypes.c_int()
    if libc.name_to_handle_at(-100, b"own", handle, ctypes.byref(mount), 0) == 0:
        return "opened" if libc.open_by_handle_at(os.open(".", os.O_RDONLY), handle, 0) >= 0 else ""

def swap():
    return "asked" if libc.swapoff(b"/nowhere") == -1 and ctypes.get_errno() != 1 else ""

def modes_of_devices():
    "Those that everybody uses, to the modes that they have."
    for device in ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", 0):
        try:
            os.chmod(device, 0o666)
            if plan["system_is_shared"]:
                return device if device else "standard input"
        except OSError:
            pass

def devices_of_the_machine():
    for name in ("mem", "kmsg", "sda", "vda", "nvme0n1", "fuse", "kvm", "loop-control"):
        try:
            os.close(os.open(f"/dev/{name}", os.O_RDWR))
            return name
        except OSError:
            pass

attempt_all([see_the_agent, trace_a_stranger, trace_the_agent, memory_of_a_stranger, change_the_name,
             mount, unmount, make_writable, change_root, become_root_of_a_new_namespace, new_namespaces,
             join_a_namespace, settings_of_the_kernel, keys_to_the_kernel, files_of_sysfs, own_limits, more_open_files,
             core_dumps, another_user, first_in_line, real_time, files_of_the_system, set_the_clock, load_a_module,
             program_the_kernel, calls_past_every_filter, files_by_their_handle, swap, modes_of_devices,
             devices_of_the_machine, kill_a_stranger])
tell()
"""
)
"""Changes the machine: PLAN has `victim`, `agent` (processes), `isolated`, `system_is_shared`."""

FORK_BOMB: str = """
import os, signal, time
signal.alarm(30)
alive = open("alive", "w")
alive.write("x"); alive.flush()
doublings = 0
while True:
    try:
        if doublings < 12 and os.fork() == 0:
            signal.alarm(30)
        doublings += 1
    except OSError:
        pass
    if doublings >= 12:
        time.sleep(0.05)
"""
"""Doubles up to 4096 processes, far above the limit; every process of it holds the pipe `alive` open. Bounded in number
and time, so that a machine survives an executor that fails the test."""

MEMORY_BOMB: str = """
import os, time
children, ready = 6, os.pipe()
for number in range(children):
    if os.fork() == 0:
        held = bytearray(os.urandom(1 << 20) * int(os.environ["EACH_MIB"]))
        os.write(ready[1], b"!")
        time.sleep(1000)
os.close(ready[1])
had = 0
while had < children and os.read(ready[0], 1):
    had += 1
print("had it" if had == children else f"{had} of them", flush=True)
os._exit(1)
"""
"""Six processes, each of which stays below the limit, together far above it."""

FILL: str = """
import os, sys, time
folder, most = os.environ["FOLDER"], int(os.environ["MOST"])
written = 0
try:
    for number in range(1000):
        with open(f"{folder}/fill{number}", "wb", buffering=0) as file:
            while file.tell() < (16 << 20):
                written += file.write(bytes(1 << 20))
                if written >= most:
                    print("had it", flush=True)
                    time.sleep(float(os.environ["HOLD"]))
                    sys.exit(0)
except OSError as error:
    print(error.errno, written >> 20, flush=True)
    sys.exit(3)
"""
"""Writes MOST bytes into FOLDER, 16 MiB to a file; then stays for HOLD seconds."""

FLOOD: str = """
import os, sys, time
try:
    for _ in range(int(os.environ["MIB"]) * 16):
        os.write(1, b"flood" * (1 << 16) + b"\\n")
except OSError:
    sys.exit(3)
time.sleep(1000)
"""
"""Prints about five times MIB MiB; then stays, if it may."""

LARGE_FILE: str = """
import os, sys
try:
    with open("large", "wb", buffering=0) as file:
        for _ in range(int(os.environ["MIB"])):
            data = bytes(1 << 20)
            while data:
                data = data[file.write(data):]
except OSError as error:
    print(error.errno)
    sys.exit(3)
print("had it")
"""
"""Writes one file of MIB MiB."""
