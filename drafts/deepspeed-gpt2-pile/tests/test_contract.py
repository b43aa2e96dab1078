"""What every project promises, for this one."""

from trainyard_shared.testing import ProjectContract


class TestContract(ProjectContract):
    package = "deepspeed-gpt2-pile"
    # 16 steps an epoch, slow enough to be killed in the middle of one.
    tiny = {  # noqa: RUF012
        "num_sample_documents": 200,
        "num_val_documents": 8,
        "num_test_documents": 13,
        "epochs": 2,
        "steps_per_epoch": 16,
        "micro_batch_size": 8,
        "deepspeed": "zero3",
        "hidden_size": 64,
        "num_layers": 2,
        "context_length": 64,
        "dropout": 0.1,
        "log_every": 1,
        "nproc": 2,
        "num_threads": 1,
    }
    steps_per_epoch = 16
    bad_flags = (
        (["--num-heads", "5"], "--hidden-size: 128 is no multiple of num_heads, 5"),
        (["--mixture", "Github"], "--mixture: 'Github' is not allowed: must be NAME=WEIGHT"),
        (["--mixture", "Github=-1"], "--mixture: 'Github=-1' is not allowed: must be NAME=WEIGHT"),
        (["--tuning", "lora"], "--tuning: lora needs a pretrained --model"),
        (["--eval-stride", "500"], "--eval-stride: 500 is more than context_length, 128"),
        (["--deepspeed", "zero4"], "--deepspeed zero4: no preset and no file of this name"),
        (["--precision", "fp16"], "fp16 is for DeepSpeed on GPUs"),
        (["--num-shards", "7"], "num_shards: 7 cannot be shared out among 2 processes"),
        (
            ["--num-shards", "6"],
            "6 does not divide micro_batch_size x gradient_accumulation_steps x processes = 4 x 1 x 2",
        ),
    )
