# The load generator: hopfare and Tor are measured by the very same code.
# ruff: noqa
# fmt: off
"""Load generator and target servers for a TCP proxy that speaks SOCKS5.

It knows nothing about Tor.  run.py uses it for Tor; any other program with a
SOCKS5 front can be measured with the very same code:

    load.py --direct --json direct.json
    load.py --socks 127.0.0.1:1080 --proc client=4711 --proc relay1=4712 --json x.json

--proc names the processes whose CPU time and memory are charged to the program
under test.  With --direct (no proxy) the target server alone is measured,
which is the ceiling of this harness.
"""
import argparse
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

MB = 10 ** 6
GB = 10 ** 9
TICK = os.sysconf("SC_CLK_TCK")
SMALL = b"x" * 64

SLOW, FAST = 8, 0.4          # seconds of the warm-up that change the volume of the runs
DEFAULTS = dict(reps=5, size_mb=100, streams=64, ttfb_samples=40,
                seq_requests=500, conc=32, conc_requests=2000)


# ---------------------------------------------------------------- utilities

def free_port(addr="127.0.0.1"):
    with socket.socket() as s:
        s.bind((addr, 0))
        return s.getsockname()[1]


def wait_listen(addr, port, proc=None, timeout=15):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if proc is not None and proc.poll() is not None:
            raise RuntimeError("%s exited with %s" % (proc.args[0], proc.returncode))
        try:
            socket.create_connection((addr, port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("nothing listens on %s:%d" % (addr, port))


def summary(values, digits=4):
    v = sorted(values)
    return {"median": round(statistics.median(v), digits), "min": round(v[0], digits),
            "max": round(v[-1], digits), "n": len(v), "all": [round(x, digits) for x in values]}


def pct(values, p):
    v = sorted(values)
    return v[min(len(v) - 1, int(round(p / 100 * (len(v) - 1))))]


_libc = ctypes.CDLL(None)


def die_with_parent():
    """preexec_fn: the child gets SIGTERM when its parent is gone, however it went."""
    _libc.prctl(1, signal.SIGTERM)


def stop(proc, grace=5):
    """End one process that we started, by its own pid."""
    if proc is None or proc.poll() is not None:
        return
    proc.terminate()
    try:
        proc.wait(grace)
    except subprocess.TimeoutExpired:
        proc.kill()
        proc.wait()


def cpu_of(pid):
    """utime + stime of a process, all threads, in seconds."""
    with open("/proc/%d/stat" % pid) as f:
        rest = f.read().rsplit(")", 1)[1].split()
    return (int(rest[11]) + int(rest[12])) / TICK


def mem_of(pid):
    out = {}
    with open("/proc/%d/status" % pid) as f:
        for line in f:
            if line.startswith(("VmRSS:", "VmHWM:")):
                k, v = line.split()[:2]
                out[k[:-1] + "_MiB"] = round(int(v) / 1024, 1)
    try:
        with open("/proc/%d/smaps_rollup" % pid) as f:
            for line in f:
                if line.startswith("Pss:"):
                    out["Pss_MiB"] = round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    return out


def machine_cpu():
    """(busy, softirq, steal, total) seconds of the whole machine."""
    with open("/proc/stat") as f:
        v = [int(x) / TICK for x in f.readline().split()[1:9]]
    return sum(v) - v[3] - v[4], v[6], v[7], sum(v)


def everyone_cpu():
    """CPU of every user process, dead children counted at their parent, in seconds."""
    t = 0
    for d in os.listdir("/proc"):
        if d.isdigit():
            try:
                with open("/proc/%s/stat" % d) as f:
                    rest = f.read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if not int(rest[6]) & 0x200000:      # kernel threads move our own packets
                t += sum(map(int, rest[11:15]))
    return t / TICK


def speed():
    """Rounds of a small fixed loop per microsecond.  On a shared host the same code can run
    at very different speed from minute to minute with no steal time to show for it."""
    best = 0.0
    for _ in range(3):
        t, x = time.perf_counter(), 0
        for i in range(100000):
            x += i * i & 7
        best = max(best, 0.1 / (time.perf_counter() - t))
    return best


class Meter:
    """CPU used in one interval by the program under test, the target servers, this
    load generator, and everybody else on the machine (foreign)."""

    def __init__(self, procs, servers):
        self.procs, self.servers = procs, servers

    @staticmethod
    def _own():
        return sum(r.ru_utime + r.ru_stime for r in (
            resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)))

    def __enter__(self):
        self.c0 = {n: cpu_of(p) for n, p in self.procs.items()}
        self.s0 = {n: cpu_of(p) for n, p in self.servers.items()}
        self.a0 = everyone_cpu()
        self.l0, self.m0, self.t0 = self._own(), machine_cpu(), time.monotonic()
        return self

    def __exit__(self, *exc):
        self.wall = time.monotonic() - self.t0
        self.cpu = {n: cpu_of(p) - self.c0[n] for n, p in self.procs.items()}
        self.cpu_total = sum(self.cpu.values())
        self.cpu_server = sum(cpu_of(p) - self.s0[n] for n, p in self.servers.items())
        self.cpu_load = self._own() - self.l0
        m1 = machine_cpu()
        total = m1[3] - self.m0[3] or 1
        self.busy = (m1[0] - self.m0[0]) / total
        self.softirq = m1[1] - self.m0[1]
        self.steal = (m1[2] - self.m0[2]) / total
        # in cores; two clock ticks are more than the clocks can resolve
        self.foreign = max(0.0, everyone_cpu() - self.a0 - self.cpu_total - self.cpu_server
                           - self.cpu_load - 2 / TICK) / self.wall


class Quiet:
    """Other people's work on the same machine spoils a run.  Wait for a quiet moment, and
    repeat a repetition during which others used more than `limit` of a core, until `budget`
    seconds are lost on both together."""

    def __init__(self, limit=0.10, budget=600):
        self.limit, self.budget = limit, budget
        self.waited, self.redone, self.worst, self.speeds = 0.0, 0, 0.0, []

    def wait(self, args):
        while self.waited < self.budget:
            with Meter(*args) as m:
                time.sleep(0.4)
            if m.foreign <= self.limit:
                return
            time.sleep(0.6)
            self.waited += 1

    def rep(self, args, fn):
        """Run fn() under a Meter; -> (value, meter) of the cleanest attempt."""
        best = None
        while True:
            self.wait(args)
            s = speed()
            with Meter(*args) as m:
                v = fn()
            m.speed = (s + speed()) / 2
            if best is None or m.foreign < best[1].foreign:
                best = (v, m)
            if m.foreign <= self.limit or self.waited >= self.budget:
                break
            self.waited += m.wall
            self.redone += 1
        self.worst = max(self.worst, best[1].foreign)
        self.speeds.append(best[1].speed)
        return best

    def report(self):
        return {"limit_cores": self.limit, "lost_s": round(self.waited, 1), "repeated": self.redone,
                "worst_kept_foreign_cores": round(self.worst, 3),
                "speed": summary(self.speeds, 2) if self.speeds else None}

    def line(self):
        r = self.report()
        sp = r["speed"] or {"median": 0, "min": 0, "max": 0}
        return ("others: worst %.2f cores in a kept repetition, %.0f s lost, %d repeated; "
                "machine speed %.1f [%.1f .. %.1f]" % (r["worst_kept_foreign_cores"], r["lost_s"], r["repeated"],
                                                       sp["median"], sp["min"], sp["max"]))


# ------------------------------------------------------------ target servers

SINK = r"""
import socket, sys, threading
srv = socket.socket(); srv.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
srv.bind((sys.argv[1], int(sys.argv[2]))); srv.listen(512)
def serve(c):
    try:
        head = b''
        while b'\r\n\r\n' not in head:
            d = c.recv(4096)
            if not d: return
            head += d
        head, rest = head.split(b'\r\n\r\n', 1)
        want = 0
        for l in head.split(b'\r\n'):
            if l.lower().startswith(b'content-length:'): want = int(l.split(b':')[1])
        got, buf = len(rest), bytearray(1 << 18)
        while got < want:
            n = c.recv_into(buf, 0, socket.MSG_TRUNC)   # thrown away inside the kernel
            if not n: break
            got += n
        body = b'%d' % got
        c.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s' % (len(body), body))
    finally:
        c.close()
while True:
    c, _ = srv.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
"""


def nginx_exe():
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


class Target:
    """nginx for downloads and small GETs, a kernel-discarding sink for uploads."""

    def __init__(self, addr="127.0.0.1", size_mb=100):
        self.addr, self.size, self.files = addr, size_mb * MB, {}
        self.dir = self.nginx = self.sink = None

    def __enter__(self):
        exe = nginx_exe()
        if not exe or not shutil.which("curl"):
            raise SystemExit("needs nginx and curl (apt-get install nginx-light curl)")
        self.dir = tempfile.mkdtemp(prefix="onionbench-target-")
        try:
            os.chmod(self.dir, 0o755)
            root = os.path.join(self.dir, "www")
            os.mkdir(root)
            self.root, self.block = root, os.urandom(MB)
            self.path(self.size)
            with open(os.path.join(root, "small"), "wb") as f:
                f.write(SMALL)
            self.port, self.up_port = free_port(self.addr), free_port(self.addr)
            conf = os.path.join(self.dir, "nginx.conf")
            temps = "".join("%s_temp_path %s/t;\n" % (m, self.dir) for m in
                            ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
            with open(conf, "w") as f:
                f.write("%sdaemon off; master_process off; worker_processes 1;\n"
                        "pid %s/pid; error_log stderr error;\n"
                        "events { worker_connections 4096; multi_accept on; }\n"
                        "http { access_log off; sendfile on; tcp_nopush on; tcp_nodelay on;\n"
                        "open_file_cache max=16; %s"
                        "server { listen %s:%d backlog=1024; root %s; } }\n"
                        % ("user root;\n" if os.geteuid() == 0 else "", self.dir, temps,
                           self.addr, self.port, root))
            self.nginx = subprocess.Popen([exe, "-e", "stderr", "-c", conf, "-p", self.dir],
                                          stderr=open(os.path.join(self.dir, "err"), "wb"),
                                          preexec_fn=die_with_parent)
            self.sink = subprocess.Popen([sys.executable, "-c", SINK, self.addr, str(self.up_port)],
                                         preexec_fn=die_with_parent)
            wait_listen(self.addr, self.port, self.nginx)
            wait_listen(self.addr, self.up_port, self.sink)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc):
        stop(self.nginx)
        stop(self.sink)
        if self.dir:
            shutil.rmtree(self.dir, ignore_errors=True)

    def path(self, size):
        """A file of that many random bytes, made on first use."""
        if size not in self.files:
            self.files[size] = os.path.join(self.root, "f%d" % size)
            with open(self.files[size], "wb") as f:
                for at in range(0, size, MB):
                    f.write(self.block[:size - at])
        return self.files[size]

    @property
    def pids(self):
        return {"nginx": self.nginx.pid, "sink": self.sink.pid}


# --------------------------------------------------------------- throughput

def curl_args(socks, user=None):
    a = ["curl", "-sS", "--fail", "-o", os.devnull, "--noproxy", "" if socks else "*",
         "-w", "%{http_code} %{size_download} %{size_upload} %{time_total}\\n"]
    if socks:
        a += ["--proxy", "socks5h://%s%s:%d" % ((user + "@") if user else "", *socks)]
    return a


def transfer(target, socks, up, streams, size, users=None):
    """Move `size` bytes over each of `streams` parallel streams; -> seconds.

    One curl has all streams: with one each, starting 64 programs would be half of what is measured.
    """
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    path = target.path(size)
    a = curl_args(socks, users[0] if users else None)
    if streams > 1:
        a += ["--parallel", "--parallel-immediate", "--parallel-max", str(streams)]
    for i in range(streams):
        if i:
            a += ["-o", os.devnull]
        if up:
            a += ["-T", path, "http://%s:%d/up" % (target.addr, target.up_port)]
        else:
            a += ["http://%s:%d/%s" % (target.addr, target.port, os.path.basename(path))]
    if up:
        a += ["-H", "Expect:"]
    p = subprocess.run(a, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    lines = [l.split() for l in p.stdout.decode().splitlines()]
    if p.returncode or len(lines) != streams or any(
            l[0] != "200" or int(l[2 if up else 1]) != size for l in lines):
        raise RuntimeError("transfer failed: curl %s %s %s" % (p.returncode, lines[:3], p.stderr[-200:].decode()))
    # curl's own clock: no process start in it
    return max(float(l[3]) for l in lines)


def throughput(target, socks, args, up, streams, reps, quiet, users=None):
    """The warm-up moves the big file's volume once, cut into `streams` parts.  When that is
    slow the measured runs move a quarter of it; when it is very fast, up to four times as much."""
    size = target.size // streams
    first = quiet.rep(args, lambda: transfer(target, socks, up, streams, size, users))[0]
    warm = size * streams / first / MB
    if first > SLOW:
        size //= 4
    elif first < FAST:
        size = target.size * min(streams, 4) // streams
    total = size * streams
    runs = [quiet.rep(args, lambda: transfer(target, socks, up, streams, size, users)) for _ in range(reps)]
    med = lambda f: round(statistics.median(f(m) for _, m in runs), 3)
    r = {"MB_per_s": summary([total / s / MB for s, _ in runs], 2), "MB_per_run": total / MB,
         "warmup_MB_per_s": round(warm, 2),
         "machine_busy": med(lambda m: m.busy), "foreign_cores": [round(m.foreign, 3) for _, m in runs],
         "speed": [round(m.speed, 2) for _, m in runs],
         "steal": max(round(m.steal, 4) for _, m in runs),
         "server_cpu_s_per_GB": med(lambda m: m.cpu_server / total * GB),
         "load_cpu_s_per_GB": med(lambda m: m.cpu_load / total * GB),
         "softirq_s_per_GB": med(lambda m: m.softirq / total * GB)}
    if args[0]:
        r["cpu_s_per_GB"] = summary([m.cpu_total / total * GB for _, m in runs], 3)
        r["cpu_s_per_GB_each"] = {n: med(lambda m: m.cpu[n] / total * GB) for n in args[0]}
        r["core_use_each"] = {n: med(lambda m: m.cpu[n] / m.wall) for n in args[0]}
    return r


# ------------------------------------------------------------ small requests

def socks_connect_bytes(addr, port):
    return b"\x05\x01\x00\x01" + socket.inet_aton(addr) + struct.pack(">H", port)


def get_bytes(target):
    return (b"GET /small HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")


def read_n(s, n):
    b = b""
    while len(b) < n:
        d = s.recv(n - len(b))
        if not d:
            raise RuntimeError("proxy closed the connection")
        b += d
    return b


def one_get(target, socks, optimistic=False):
    """One small GET on a new stream; -> (seconds to first byte, seconds to the end)."""
    t0 = time.perf_counter()
    s = socket.create_connection(socks or (target.addr, target.port), 60)
    try:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if socks:
            s.sendall(b"\x05\x01\x00")
            if read_n(s, 2) != b"\x05\x00":
                raise RuntimeError("SOCKS5 greeting refused")
            req = socks_connect_bytes(target.addr, target.port)
            s.sendall(req + get_bytes(target) if optimistic else req)
            if read_n(s, 10)[1]:
                raise RuntimeError("SOCKS5 connect refused")
        if not (socks and optimistic):
            s.sendall(get_bytes(target))
        d = s.recv(65536)
        t1 = time.perf_counter()
        buf = d
        while d:
            d = s.recv(65536)
            buf += d
        t2 = time.perf_counter()
    finally:
        s.close()
    if not buf.startswith(b"HTTP/1.1 200") or not buf.endswith(SMALL):
        raise RuntimeError("bad reply")
    return t1 - t0, t2 - t0


def worker(target, socks, take, lat):
    """Generator: GET after GET until take() is false; yields (socket, epoll event)."""
    dest = socks or (target.addr, target.port)
    while take():
        t0 = time.perf_counter()
        s = socket.socket()
        s.setblocking(False)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            s.connect(dest)
        except BlockingIOError:
            yield s, select.EPOLLOUT
        if socks:
            s.send(b"\x05\x01\x00")
            for n, nxt in ((2, socks_connect_bytes(target.addr, target.port)), (10, None)):
                b = b""
                while len(b) < n:
                    yield s, select.EPOLLIN
                    d = s.recv(n - len(b))
                    if not d:
                        raise RuntimeError("proxy closed the connection")
                    b += d
                if b[1]:
                    raise RuntimeError("SOCKS5 refused: %r" % b)
                if nxt:
                    s.send(nxt)
        s.send(get_bytes(target))
        buf = b""
        while True:
            yield s, select.EPOLLIN
            d = s.recv(65536)
            if not d:
                break
            buf += d
        s.close()
        if not buf.endswith(SMALL):
            raise RuntimeError("bad reply")
        lat.append(time.perf_counter() - t0)


def concurrent_gets(target, socks, conc, total):
    left, lat = [total], []

    def take():
        left[0] -= 1
        return left[0] >= 0

    ep, waiting = select.epoll(), {}

    def step(g, old=None):
        nxt = next(g, None)
        if nxt:
            s, ev = nxt
            waiting[s.fileno()] = (g, s)
            ep.register(s, ev | select.EPOLLONESHOT) if old is not s else ep.modify(s, ev | select.EPOLLONESHOT)

    t0 = time.perf_counter()
    for _ in range(conc):
        step(worker(target, socks, take, lat))
    while waiting:
        evs = ep.poll(60)
        if not evs:
            raise RuntimeError("no progress in 60 s")
        for fd, _ in evs:
            g, s = waiting.pop(fd)
            step(g, s)
    secs = time.perf_counter() - t0
    ep.close()
    return secs, lat


def requests(target, socks, args, o, quiet):
    r = {}
    for _ in range(5):
        one_get(target, socks)
    for name, opt in (("ttfb_ms", False),) + ((("ttfb_optimistic_ms", True),) if socks else ()):
        go = lambda: [one_get(target, socks, opt)[0] * 1e3 for _ in range(o["ttfb_samples"])]
        batches = [quiet.rep(args, go)[0] for _ in range(o["reps"])]
        allv = [x for b in batches for x in b]
        r[name] = dict(summary([statistics.median(b) for b in batches], 3),
                       p5=round(pct(allv, 5), 3), p95=round(pct(allv, 95), 3), fastest=round(min(allv), 3))

    def seq():
        t0 = time.perf_counter()
        lat = [one_get(target, socks)[1] for _ in range(o["seq_requests"])]
        return time.perf_counter() - t0, lat

    for name, conc, total, go in (
            ("seq", 1, o["seq_requests"], seq),
            ("conc", o["conc"], o["conc_requests"],
             lambda: concurrent_gets(target, socks, o["conc"], o["conc_requests"]))):
        runs = [quiet.rep(args, go) for _ in range(o["reps"])]
        med = lambda f: round(statistics.median(f(v, m) for v, m in runs), 3)
        e = {"concurrency": conc, "requests": total,
             "req_per_s": summary([total / v[0] for v, _ in runs], 1),
             "latency_p50_ms": med(lambda v, m: pct(v[1], 50) * 1e3),
             "latency_p95_ms": med(lambda v, m: pct(v[1], 95) * 1e3),
             "load_cpu_ms_per_req": med(lambda v, m: m.cpu_load / total * 1e3)}
        if args[0]:
            e["cpu_ms_per_req"] = summary([m.cpu_total / total * 1e3 for _, m in runs], 3)
            e["core_use_each"] = {n: med(lambda v, m: m.cpu[n] / m.wall) for n in args[0]}
        r["requests_" + name] = e
    return r


# ------------------------------------------------------------------ all of it

def measure(target, socks, procs=None, opts=None, say=lambda s: None, parts=("down", "up", "req"), quiet=None):
    """Everything, over one SOCKS5 proxy (or none).  procs: {name: pid} charged for CPU."""
    o = dict(DEFAULTS, **(opts or {}))
    procs, quiet = procs or {}, quiet or Quiet()
    args = (procs, target.pids)
    res = {}
    if procs:
        res["mem_before"] = {n: mem_of(p) for n, p in procs.items()}
        with Meter(*args) as m:
            time.sleep(5)
        res["idle_cpu_s_per_s"] = {n: round(c / m.wall, 4) for n, c in m.cpu.items()}
    for part, up in (("down", False), ("up", True)):
        if part in parts:
            for n in (1, o["streams"]):
                key = "%s_%d" % (part, n)
                res[key] = throughput(target, socks, args, up, n, o["reps"], quiet)
                t = res[key]
                say("  %-7s %8.1f MB/s  [%.1f .. %.1f]%s" % (
                    key, t["MB_per_s"]["median"], t["MB_per_s"]["min"], t["MB_per_s"]["max"],
                    "   %.2f CPU s/GB" % t["cpu_s_per_GB"]["median"] if procs else ""))
    if "req" in parts:
        res.update(requests(target, socks, args, o, quiet))
        for k in ("ttfb_ms", "ttfb_optimistic_ms"):
            if k in res:
                say("  %-20s %7.2f ms   [%.2f .. %.2f]" % (k, res[k]["median"], res[k]["min"], res[k]["max"]))
        for k in ("requests_seq", "requests_conc"):
            e = res[k]
            say("  %-14s x%-3d %8.1f req/s [%.1f .. %.1f]  p50 %.2f ms%s" % (
                k, e["concurrency"], e["req_per_s"]["median"], e["req_per_s"]["min"], e["req_per_s"]["max"],
                e["latency_p50_ms"], "  %.2f CPU ms/req" % e["cpu_ms_per_req"]["median"] if procs else ""))
    if procs:
        res["mem_after"] = {n: mem_of(p) for n, p in procs.items()}
    res["quiet"] = quiet.report()
    say("  " + quiet.line())
    return res


def add_options(ap):
    for k, v in DEFAULTS.items():
        ap.add_argument("--" + k.replace("_", "-"), type=int, default=v)
    ap.add_argument("--quiet-limit", type=float, default=0.10, help="cores that others may use")
    ap.add_argument("--quiet-wait", type=float, default=600, help="seconds to lose on the others, per variant")


def taken_options(a):
    return {k: getattr(a, k) for k in DEFAULTS}


def on_signals():
    """Turn the usual signals into an exception, so that every `with` cleans up."""
    def bail(n, _):
        raise SystemExit(128 + n)
    for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(n, bail)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--socks", help="host:port of the SOCKS5 proxy under test")
    ap.add_argument("--direct", action="store_true", help="no proxy")
    ap.add_argument("--proc", action="append", default=[], metavar="NAME=PID")
    ap.add_argument("--listen", default="127.0.0.1", help="address of the target servers")
    ap.add_argument("--parts", default="down,up,req")
    ap.add_argument("--json")
    add_options(ap)
    a = ap.parse_args()
    if bool(a.socks) == a.direct:
        ap.error("give --socks or --direct")
    on_signals()
    socks = None
    if a.socks:
        h, p = a.socks.rsplit(":", 1)
        socks = (h, int(p))
    procs = {n: int(p) for n, p in (x.split("=") for x in a.proc)}
    with Target(a.listen, a.size_mb) as t:
        res = measure(t, socks, procs, taken_options(a), print, a.parts.split(","), Quiet(a.quiet_limit, a.quiet_wait))
    if a.json:
        with open(a.json, "w") as f:
            json.dump(res, f, indent=1)


if __name__ == "__main__":
    main()
