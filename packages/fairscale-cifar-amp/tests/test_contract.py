"""What every project promises, for this one."""

from trainyard_shared.testing import ProjectContract


class TestContract(ProjectContract):
    package = "fairscale-cifar-amp"
    # 1,024 training images, 64 in each global batch: 16 steps an epoch, slow enough to be killed in the middle of one.
    tiny = {  # noqa: RUF012
        "num_sample_images": 1100,
        "num_val": 76,
        "epochs": 2,
        "micro_batch_size": 32,
        "widths": (16, 32, 32),
        "log_every": 1,
        "nproc": 2,
        "num_threads": 1,
    }
    steps_per_epoch = 16
    bad_flags = (
        (["--widths", "30", "64", "64"], "--widths: 30 is not allowed: must be a multiple of 8"),
        (["--widths", "32", "64"], "--widths: 32 64 is not allowed: must be 3 values"),
        (["--sharding", "zero"], "--sharding: zero is not allowed: must be"),
        (["--sharding", "fairscale_fsdp", "--nproc", "1"], "FairScale cannot collect the state of a single process"),
        (["--precision", "fp8"], "--precision: fp8 is not allowed: must be 'fp32', 'bf16' or 'fp16'"),
        (["--num-sample-images", "200", "--num-val", "200"], "num_val: 200 is not allowed: there are 200"),
        (
            ["--num-sample-images", "200", "--num-val", "0", "--micro-batch-size", "500", "--nproc", "1"],
            "500 x 1 x 1 = 500 images, but there are only 200 training images",
        ),
    )
