"""What every project promises, for this one."""

from trainyard_shared.testing import ProjectContract


class TestContract(ProjectContract):
    package = "deepspeed-vit-fsdp"
    # 1,024 training images, 64 in each global batch: 16 steps an epoch, slow enough to be killed in the middle of one.
    tiny = {  # noqa: RUF012
        "num_sample_images": 1100,
        "num_val": 76,
        "epochs": 2,
        "micro_batch_size": 32,
        "patch_size": 8,
        "hidden_size": 64,
        "num_layers": 2,
        "dropout": 0.1,
        "learning_rate": 2e-3,
        "log_every": 1,
        "nproc": 2,
        "num_threads": 1,
    }
    steps_per_epoch = 16
    bad_flags = (
        (["--hidden-size", "50"], "--hidden-size: 50 is not allowed: must be a multiple of 32"),
        (["--deepspeed", "zero4"], "--deepspeed zero4: no preset and no file of this name"),
        (["--precision", "fp8"], "--precision: fp8 is not allowed: must be 'fp32', 'bf16' or 'fp16'"),
        (["--precision", "fp16", "--nproc", "1"], "precision: fp16 is not allowed on a CPU"),
    )
