"""However requests end, each task ends once, and no host is asked by more than it should be."""

import random
import threading
from collections import Counter

from data_pipeline.collect.download.network.addresses import Target
from data_pipeline.collect.download.network.hosts import Hosts, Task
from data_pipeline.collect.download.network.robots import Robots
from data_pipeline.collect.download.outcomes import Failed
from data_pipeline.collect.download_settings import DownloadSettings

THREADS, HOSTS, TASKS, PER_HOST = 12, 20, 20, 2
FAILURES = (
    Failed("status", 404),
    Failed("status", 500, again=True),
    Failed("status", 503, again=True, wait=0.003),
    Failed("status", 429, again=True, wait=5),
    Failed("timeout", again=True),
)


class Threads:
    """Threads that take tasks and end them as chance has it."""

    def __init__(self):
        self.hosts = Hosts(
            DownloadSettings(per_host=PER_HOST, interval=0.001, backoff=0.002, max_wait=0.01)
        )
        self.active, self.most, self.ended = Counter(), Counter(), []
        self.lock = threading.Lock()

    def run(self, seed):
        chance = random.Random(seed)
        while (taken := self.hosts.take()) is not None:
            host, task = taken
            name = host.origin.partition("//")[2].partition(":")[0]
            asks = not host.closed  # the rows of a closed one are only ended
            with self.lock:
                self.active[name] += asks
                self.most[name] = max(self.most[name], self.active[name])
            threading.Event().wait(chance.random() / 1000)
            with self.lock:
                self.active[name] -= asks
            self.end(host, task, chance)

    def end(self, host, task, chance):
        kind = chance.random()
        if host.closed or task.target is None:
            self.hosts.finish(host)
        elif host.robots is None:
            fault = Failed("timeout", again=True) if kind < 0.1 else None
            host.robots = None if fault else Robots()
            return self.hosts.put_back(host, task, fault)
        elif kind < 0.1:
            self.hosts.add(Task(task.number, target(chance.randrange(HOSTS)), task.tries))
            return self.hosts.finish(host)
        elif kind < 0.4:
            task.tries += 1
            if self.hosts.finish(host, chance.choice(FAILURES), task):
                return
        else:
            self.hosts.finish(host)
        self.ended.append(task.number)


def target(number):
    """Two origins of each name, which have one limit."""
    scheme, port = (("http", 80), ("https", 443))[number % 2]
    return Target(scheme, f"host{number // 2}.example", port, "/")


def test_each_task_ends_once():
    run, numbers = Threads(), range(HOSTS * TASKS)
    for number in numbers:
        run.hosts.add(Task(number, target(number % HOSTS) if number % 9 else None))
    threads = [threading.Thread(target=run.run, args=(i,), daemon=True) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(run.ended) == list(numbers)
    local = run.most.pop("")
    assert max(run.most.values()) == PER_HOST
    assert local > 1  # what is here already has no limit but the number of threads
