import operator
import os
import signal
import time
from functools import partial

import pytest

from datamodules.prepare.pool import Failure, Pool

# `operator.call` runs each task, a partial, in the worker.


def test_results_come_in_order_and_failures_stay_with_their_task():
    tasks = [
        partial(int, "0"),
        partial(os._exit, 7),
        partial(int, "no number"),
        partial(operator.truediv, 1, 0),
        partial(signal.raise_signal, signal.SIGKILL),
        partial(int, "6"),
        partial(time.sleep, 60),
        partial(int, "8"),
    ]
    with Pool(operator.call, (ValueError,), workers=2, timeout=1) as pool:
        results = list(pool.run(tasks))
    assert results[0] == 0
    assert results[1] == Failure("its process ended with exit code 7", fatal=True)
    assert results[2] == Failure("invalid literal for int() with base 10: 'no number'")
    assert results[3] == Failure("ZeroDivisionError: division by zero", fatal=True)
    assert results[4] == Failure("its process ended with exit code -9", fatal=True)
    assert results[5] == 6
    assert results[6] == Failure("took longer than 1 s", fatal=True)
    assert results[7] == 8


def test_without_workers_unexpected_errors_are_raised():
    with Pool(operator.call, (ValueError,), workers=0) as pool:
        results = pool.run([partial(int, "1"), partial(int, "x"), partial(operator.truediv, 1, 0)])
        assert next(results) == 1
        assert next(results) == Failure("invalid literal for int() with base 10: 'x'")
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_ctrl_c_is_the_parents_business_from_the_start():
    with Pool(operator.call, (), workers=1) as pool:
        assert signal.SIGINT in next(pool.run([partial(signal.pthread_sigmask, signal.SIG_BLOCK, ())]))
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_leaving_ends_the_workers():
    with Pool(operator.call, (), workers=1) as pool:
        results = pool.run([partial(os.getpid), partial(time.sleep, 60)])
        worker = next(results)
        os.kill(worker, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
