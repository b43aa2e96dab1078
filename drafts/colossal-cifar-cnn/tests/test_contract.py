"""What every project promises, for this one."""

from trainyard_shared.testing import ProjectContract


class TestContract(ProjectContract):
    package = "colossal-cifar-cnn"
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
        (["--optimizer", "adammm"], "--optimizer: adammm is not allowed: must be 'sgd', 'adam', 'adamw'"),
        (["--plugin", "zero4"], "--plugin: zero4 is not allowed: must be 'ddp', 'zero1', 'zero2' or 'gemini'"),
        (["--no-test", "--num-val", "0"], "--no-test: with --num-val 0 nothing is left to judge the network by"),
        (["--plugin", "gemini"], "--plugin gemini computes in 16 bits only: use --precision bf16 or fp16"),
        (
            ["--plugin", "gemini", "--precision", "bf16"],
            "--plugin gemini does not take adamw: use --optimizer hybrid_adam",
        ),
        (
            ["--plugin", "gemini", "--precision", "bf16", "--optimizer", "hybrid_adam", "--norm", "batch"],
            "--plugin gemini would keep batch statistics in 16 bits: use --norm group",
        ),
        (["--pretrained", "torchvision"], "there are no pretrained weights for cnn: use --model resnet18"),
        (
            ["--pretrained", "torchvision", "--model", "resnet18"],
            "the pretrained ResNet-18 has batch normalisation: use --norm batch",
        ),
        (
            ["--plugin", "ddp", "--precision", "fp16", "--device", "cpu"],
            "with --plugin ddp it needs a GPU, because Colossal-AI scales the loss with CUDA's GradScaler; without one "
            "use --precision bf16, or --plugin zero1",
        ),
        (
            ["--global-batch-size", "65", "--nproc", "2"],
            "65 images do not divide by 2 processes x 1 accumulation steps = 2",
        ),
    )
