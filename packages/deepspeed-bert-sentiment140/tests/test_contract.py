"""What every project promises, for this one."""

from trainyard_shared.testing import ProjectContract


class TestContract(ProjectContract):
    package = "deepspeed-bert-sentiment140"
    # 512 training tweets, 32 in each global batch: 16 steps an epoch, slow enough to be killed in the middle of one.
    tiny = {  # noqa: RUF012
        "num_sample_tweets": 900,
        "num_train": 512,
        "epochs": 2,
        "micro_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "max_length": 64,
        "log_every": 1,
        "nproc": 2,
        "num_threads": 1,
    }
    steps_per_epoch = 16
    bad_flags = (
        (["--hidden-size", "30"], "--hidden-size: 30 is not allowed: must be a multiple of 32"),
        (["--layer-decay", "0"], "--layer-decay: 0 is not allowed: must be greater than 0"),
        (["--deepspeed", "zero4"], "--deepspeed zero4: no preset and no file of this name"),
        (["--parallel", "pipeline", "--nproc", "1"], "--parallel pipeline needs 2 or more processes, found 1"),
        (["--parallel", "tensor", "--deepspeed", "zero3"], "--parallel tensor goes with stages 0 and 1 of ZeRO"),
        (["--num-classes", "4"], "--num-classes: 4 is not allowed: must be 2 or 3"),
        (["--precision", "fp16", "--device", "cpu"], "--precision fp16: not on a CPU"),
    )
