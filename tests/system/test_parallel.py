import threading

import pytest

from efficientad.system.parallel import parallel_map


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_parallel_map_keeps_the_order(workers):
    assert list(parallel_map(lambda x: x * x, range(50), workers)) == [x * x for x in range(50)]


def test_parallel_map_stays_close_to_its_consumer():
    """An endless source must not fill the memory."""
    taken = []

    def source():
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    results = parallel_map(lambda x: x, source(), 2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(taken) <= 5 + 2 * 2
    results.close()
    assert threading.active_count() < 10


def test_parallel_map_raises_what_the_function_raises():
    results = parallel_map(lambda x: 1 // x, [1, 0, 1], 2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_is_taken_ahead_while_the_first_result_is_awaited(workers):
    """The maker of batches makes the next one although no item of the last one is done."""
    made, may_end = [], threading.Event()

    def source():
        for number in range(60):
            made.append(number)
            if number == 2 * workers + 15:
                may_end.set()
            yield number

    def work(number):
        assert may_end.wait(20)
        return number

    results = parallel_map(work, source(), workers, more_ahead=16)
    assert next(results) == 0
    assert len(made) <= 1 + 2 * workers + 16
    assert list(results) == list(range(1, 60))
