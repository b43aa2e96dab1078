"""What every project promises, for this one."""

from trainyard_shared.testing import ProjectContract


class TestContract(ProjectContract):
    package = "torchdist-imdb"
    # 512 training reviews, 32 in each global batch: 16 steps an epoch, slow enough to be killed in the middle of one.
    tiny = {  # noqa: RUF012
        "num_sample_reviews": 572,
        "num_val": 60,
        "epochs": 2,
        "global_batch_size": 32,
        "micro_batch_size": 8,
        "hidden_size": 64,
        "max_length": 128,
        "log_every": 1,
        "nproc": 2,
        "num_threads": 1,
    }
    steps_per_epoch = 16
    bad_flags = (
        (["--hidden-size", "30"], "--hidden-size: 30 is not allowed: must be a multiple of 32"),
        (["--layer-decay", "0"], "--layer-decay: 0 is not allowed: must be greater than 0"),
        (["--truncation", "middle"], "--truncation: middle is not allowed: must be 'head', 'tail' or 'head_tail'"),
        (["--num-sample-reviews", "20"], "--num-sample-reviews: 20 is not allowed: must be at least 100"),
    )
