"""What every project promises, for this one."""

from trainyard_shared.testing import ProjectContract


class TestContract(ProjectContract):
    package = "fairscale-turbofan-anomaly"
    # 16 steps an epoch, slow enough to be killed in the middle of one.
    tiny = {  # noqa: RUF012
        "num_sample_engines": 10,
        "epochs": 2,
        "window": 20,
        "chunk": 8,
        "hidden_size": 16,
        "micro_batch_size": 34,
        "log_every": 1,
        "nproc": 2,
        "num_threads": 1,
    }
    steps_per_epoch = 16
    bad_flags = (
        (["--subset", "FD005"], "--subset: FD005 is not allowed: must be 'FD001', 'FD002', 'FD003' or 'FD004'"),
        (["--model", "rnn"], "--model: rnn is not allowed: must be"),
        (["--hidden-size", "31"], "--hidden-size: 31 is not allowed: must be a multiple of 2"),
        (["--val-fraction", "0.5"], "--val-fraction: 0.5 is not allowed: must be less than 0.5"),
        (["--smoothing", "0"], "--smoothing: 0 is not allowed: must be greater than 0"),
        (["--checkpointing", "all"], "--checkpointing: all is not allowed: must be"),
        (["--model", "transformer", "--num-heads", "5"], "hidden_size 32 must be a multiple of num_heads 5"),
        (
            ["--num-sample-engines", "5", "--micro-batch-size", "5000", "--nproc", "1"],
            "5000 x 1 x 1 = 5000 windows, but there are only",
        ),
    )
