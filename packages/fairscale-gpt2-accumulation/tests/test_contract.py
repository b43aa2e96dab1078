"""What every project promises, for this one."""

from trainyard_shared.testing import ProjectContract


class TestContract(ProjectContract):
    package = "fairscale-gpt2-accumulation"
    # 131 blocks, 8 in each global batch: 17 steps an epoch, the last one smaller; with dropout: random states count.
    tiny = {  # noqa: RUF012
        "num_sample_articles": 32,
        "epochs": 2,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "packing": "stream",
        "num_prompts": 4,
        "log_every": 1,
        "nproc": 2,
        "num_threads": 1,
    }
    steps_per_epoch = 17
    bad_flags = (
        (["--hidden-size", "30"], "--hidden-size: 30 is not allowed: must be a multiple of 32"),
        (["--sharding", "zero"], "--sharding: zero is not allowed: must be"),
        (["--sharding", "fairscale_fsdp", "--nproc", "1"], "FairScale cannot collect the state of a single process"),
        (["--adascale"], "--adascale goes with --sharding ddp, not oss"),
        (
            ["--adascale", "--sharding", "ddp", "--nproc", "1", "--gradient-accumulation-steps", "1"],
            "use --nproc 2 or --gradient-accumulation-steps 2, or more",
        ),
        (["--eval-stride", "100"], "--eval-stride: 100 is not allowed: must be at most --context-length, 64"),
        (["--prompt-tokens", "60"], "--prompt-tokens 60 and --continuation-tokens 24 are more than --context-length"),
        (["--precision", "fp16"], "--precision: fp16 is not allowed: must be 'fp32' or 'bf16'"),
        (
            ["--num-sample-articles", "20", "--micro-batch-size", "9000", "--nproc", "1"],
            "9000 x 4 x 1 = 36000 blocks, but there are only",
        ),
    )
