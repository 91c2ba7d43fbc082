"""Worker processes that may crash or hang without taking the work of the others along."""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Generic, TypeVar

from datamodules.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """What stands in place of a result.

    Attributes:
        reason: why there is none.
        fatal: the worker that reported it ends, since the error was not an expected one.
    """

    reason: str
    fatal: bool = False


class Pool(Generic[Task, Result]):
    """Runs one function over tasks, each worker one task at a time, so that a death is blamed on the right task.

    Args:
        function: picklable; called with one task.
        expected: exceptions that mean that a task cannot be done; their message becomes the reason.
        workers: number of processes; 0 runs the tasks in this process, where unexpected errors are raised.
        timeout: seconds after which a task's process is killed.
    """

    def __init__(
        self,
        function: Callable[[Task], Result],
        expected: tuple[type[Exception], ...],
        workers: int,
        timeout: float = 600.0,
    ) -> None:
        self._function, self._expected, self._timeout = function, expected, timeout
        self._count = workers
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, _Worker] = {}

    def __enter__(self) -> "Pool[Task, Result]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in [*self._idle, *self._busy.values()]:
            worker.end()
        self._idle, self._busy = [], {}

    def run(self, tasks: Sequence[Task]) -> Iterator[Result | Failure]:
        """Results in the order of the tasks; a few more than were taken are computed ahead.

        Args:
            tasks: what to call the function with; picklable unless there are no workers.

        Yields:
            For each task its result, or a failure that says why there is none.

        Raises:
            DataError: if worker processes cannot start.
        """
        if self._count == 0:
            with _one_torch_thread():
                yield from (_attempt(self._function, self._expected, task) for task in tasks)
            return
        results: dict[int, Result | Failure] = {}
        started = 0
        for number in range(len(tasks)):
            while number not in results:
                while started < min(len(tasks), number + 2 * self._count) and len(self._busy) < self._count:
                    self._start(started, tasks[started])
                    started += 1
                results |= self._collect()
            yield results.pop(number)

    def _start(self, number: int, task: Task) -> None:
        worker = self._idle.pop() if self._idle else _Worker(self._function, self._expected)
        worker.start(number, task, self._timeout)
        self._busy[worker.connection] = worker

    def _collect(self) -> dict[int, Any]:
        """Wait for the next results, deaths or time-outs."""
        deadline = min(worker.deadline for worker in self._busy.values())
        patience = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
        ready = wait(list(self._busy), timeout=patience)
        results = {}
        for connection, worker in list(self._busy.items()):
            if connection in ready:
                result = worker.receive()
                if result is None:
                    worker.deadline = time.monotonic() + self._timeout
                    continue
            elif time.monotonic() >= worker.deadline:
                result = Failure(f"took longer than {self._timeout:g} s", fatal=True)
            else:
                continue
            del self._busy[connection]
            results[worker.number] = result
            if isinstance(result, Failure) and result.fatal:
                worker.end()
            else:
                self._idle.append(worker)
        return results


class _Worker:
    """One process, and the task that it has."""

    def __init__(self, function: Callable[[Any], Any], expected: tuple[type[Exception], ...]) -> None:
        context = get_context("spawn")  # forked children of a process with threads can lock up
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function, expected), daemon=True)
        with _without_ctrl_c():
            self.process.start()
        theirs.close()
        self.number, self.deadline, self.running = -1, math.inf, False

    def start(self, number: int, task: Any, timeout: float) -> None:
        """Hand over a task. Its time counts from when the process runs, see `receive`."""
        self.number = number
        self.deadline = time.monotonic() + timeout if self.running else math.inf
        self.connection.send(task)

    def receive(self) -> Any:
        """The result of the task; None if the process says that it has started."""
        try:
            result = self.connection.recv()
            self.running = True
            return result
        except (EOFError, OSError) as error:
            self.process.join()
            if not self.running:
                raise DataError(f"worker processes cannot start (exit code {self.process.exitcode})") from error
            return Failure(f"its process ended with exit code {self.process.exitcode}", fatal=True)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Start processes that Ctrl-C, which reaches the whole group, leaves alone: their parent ends them.

    A process inherits which signals are blocked, so it never has a moment in which it would show a traceback.
    """
    resource_tracker.ensure_running()  # is started with the first process otherwise, and then unblocks the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keep torch, if the function has loaded it, from waking threads for its many small tensors."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _attempt(function: Callable[[Any], Any], expected: tuple[type[Exception], ...], task: Any) -> Any:
    try:
        return function(task)
    except expected as error:
        return Failure(str(error))


def _serve(connection: Connection, function: Callable[[Any], Any], expected: tuple[type[Exception], ...]) -> None:
    """Body of a worker process: tasks come in, results go out, until the parent is gone."""
    connection.send(None)
    with _one_torch_thread():
        _work(connection, function, expected)


def _work(connection: Connection, function: Callable[[Any], Any], expected: tuple[type[Exception], ...]) -> None:
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            result = _attempt(function, expected, task)
        except BaseException as error:
            connection.send(Failure(f"{type(error).__name__}: {error}", fatal=True))
            raise
        connection.send(result)
