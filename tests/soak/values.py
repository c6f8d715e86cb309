"""Values that no command may take, by the kind of thing that is asked for."""

NO_TEXT = "\udcff\udcfe"  # Bytes that are not UTF-8, as Python hands them over.
LONG = "x" * 300  # No file system takes such a name.

# Values that no option of a kind takes.
COUNTS = ("0", "-1", "1.5", "abc", "", "nan", "inf", "-inf", "1e30", "9" * 40, NO_TEXT, "[1]")
PERIODS = ("0", "-1", "1.5", "abc", "", "nan", "inf", NO_TEXT)  # Never may be as far as one likes.
SEEDS = ("1.5", "abc", "", "nan", str(2**70), str(-(2**70)), NO_TEXT)
NUMBERS = ("abc", "", "nan", "inf", "1,2", NO_TEXT)
MISSING = ("nowhere", "", "nowhere/deeper", "notes.txt/deeper", LONG, NO_TEXT, "..", "empty")
TAKEN = ("full", "notes.txt", "notes.txt/deeper", f"new/{LONG}", f"new/{NO_TEXT}", "/proc/x/y")
SHARED = tuple(place for place in TAKEN if place != "full")  # Where other things may stand.
ASSIGNMENTS = ("", "=", "x", "=1", "nothing=1", "a.b.c=1", f"{NO_TEXT}=1", "class=1")
CHOICES = ("abc", "", "None", NO_TEXT)
AGENTS = ("", "nobody", "DQN ", "dqn/x", NO_TEXT, "minatar/breakout", "custom")
PLACES = ("", "nowhere", "toy/nowhere", "toy/", "/chain", "atari/", "gym/Nothing-v0", "toy/chain/x")
PLACES += (
    "gymnax/x",
    "ALE/Pong-v5",
    "gym/ALE/Pong-v5",
    "gym/nowhere:Id-v0",
    "minatar/pong",
    NO_TEXT,
)
TASKS = ("tokens/", "tokens/nothing", "tokens/jsonl:", "tokens/jsonl:nowhere", "tokens/jsonl:empty")
TASKS += ("tokens/jsonl:notes.txt", "tokens/preferences:rows.jsonl", f"tokens/jsonl:{NO_TEXT}")
REWARDS = ("", "nothing", "exact+", "*exact", "nan*exact", "1e999*exact", "exact exact", "python:")
REWARDS += ("python:nowhere:f", "python:json:nothing", "reward-model:nowhere", "entailment:empty")
REWARDS += ("math:1", "format:", "format:(a", r"format:(a)\1", "format:a{9999}")
REWARDS += ("http://", "http:nowhere", "http://me:secret@localhost/", "https://localhost:99999/")
REWARDS += ("reward-model:sft", "entailment:notes.txt", "exact*2*length", "exact-", "0.5", NO_TEXT)
MESHES = ("", "1", "0x1", "x", "2x2x2", "-1x1", "1e3x1", "abc", "3x1")
MODELS = (*MISSING, "toy", "notes.txt", "full", "rows.jsonl")
# What goes with nothing of the rest.
STRAY = ("--nothing", "--out", "--set", "--best=1", "--help=1", "-x", "--seed=", "--trust-code=yes")
# Options that belong to runs, models or methods of another kind.
CLASHES = {
    "train": (
        "--model=tiny --teacher=sft --reward=exact --tokenizer=x --mesh=1x1 --resume=toy "
        "--accept-changes --empty-replay --overlong=drop --model-flag=a=1 --num-processes=2 "
        "--process-id=1 --workers=2 --ray=nowhere:1"
    ).split(),
    "train_sft": (
        "--teacher=model --reward=exact --environment-flag=length=3 --num-envs=2 --empty-replay "
        "--model-flag=num_layers=0 --model-flag=embed_dim=nan --model-flag=num_heads=-1 "
        "--model-flag=dtype=int8 --model-flag=vocab_size=3000000000 --set=max_prompt_length=1 "
        "--model-flag=pattern=0"
    ).split(),
    "train_gkd": ("--teacher=toy --teacher= --reward=exact --set=student_fraction=2").split(),
    "train_rlhf": (
        "--teacher=sft --num-envs=3 --set=samples_per_prompt=1 --set=epochs=2 --set=variant=ppo "
        "--set=ratio=none --set=oversample=3"
    ).split(),
    "train_rewards": ("--reward=exact --set=dropout=1").split(),
    "resume": ("--seed=1 --set=epsilon=0 --out=new --steps=1 --num-seeds=2").split(),
    "evaluate": (
        "--samples=2 --best-of=2 --reward=exact --seed=7 tokens/arithmetic --overlong=drop "
        "--max-new-tokens=2 --video=film.txt"
    ).split(),
    "evaluate_texts": (
        "--video=film.gif --seed=7 --max-steps=3 toy/chain --max-prompt-length=1 "
        "--max-new-tokens=999999"
    ).split(),
    "answer": (
        "--route=auto --route=3 --temperature=0 --run-seed=9 toy/chain --max-new-tokens=1000000 "
        "--best=1"
    ).split(),
    "generate": (
        "--prompts=prompts.jsonl --top-p=2 --top-p=0 --temperature=-1 --stop-token=99999 "
        f"--top-k=-1 --prompt={NO_TEXT} --max-new-tokens=1000000"
    ).split(),
    "export": (
        "--seed=9 --trust-code=1 second --quantize=q8_0 --out=new.gguf --format=gguf"
    ).split(),
    "export_gguf": (
        "--quantize=q4_0 --quantize=q8_0 --quantize=Q8_0 --seed=1 --format=hugging-face --out=new "
        "--trust-code=1 second"
    ).split(),
    "quantize": (
        "--format=q4_0 --format=int2 --table=int2 --seed=9 toy/chain --trust-code=1"
    ).split(),
    "merge": ("--rate=0.5 --t=0.5 --weights=1 --base=toy --interpolation=2 --group=layer").split(),
    "merge_slerp": ("--rate=0.5 --t=2 --t=-1 --weights=1 --interpolation=-0.1").split(),
    "report": ("--baseline=nobody --steps=1 --out=notes.txt").split(),
    "sweep": ("--jobs=1.5 --ray=nowhere:1 second.toml").split(),
    "label": ("--swapped=2 --swapped=-1 --earlier=notes.txt --reward=exactly toy/chain").split(),
    "pipeline": ("--without=nothing second.toml").split(),
    "reproduce": ("--set=num_garnets=0 --mdp=notes.txt --set=discount=1 --set=rates=").split(),
    "entailment": ("--set=steps=0 --set=max_length=1 --set=learning_rate=nan").split(),
    "fields": ("toy").split(),
    "list": ("dqn").split(),
}
# Flags of environments.
FLAGS = {
    "train": ("length=0 length=abc length=1.5 slip=0.5 slip=nan length=1e30").split(),
    "train_minatar": (
        "sticky_action_prob=abc sticky_action_prob=2 sticky_action_prob=nan "
        "difficulty_ramping=abc max_episode_steps=0 max_episode_steps=1.5 max_episode_steps=nan "
        "minimal_actions=2 minimal_actions= max_episode_steps=1e30"
    ).split(),
    "train_gym": (
        "sutton_barto_reward=maybe max_episode_steps=1.5 max_episode_steps=0 "
        "max_episode_steps=abc render_mode=human max_episode_steps=nan id=x"
    ).split(),
    "train_atari": (
        "protocol=abc repeat_probability=2 repeat_probability=abc max_noops=-1 max_noops=1.5 "
        "life_loss=maybe max_frames=0 num_threads=1e9 num_threads=-1 num_threads=abc "
        "repeat_probability=nan max_frames=nan"
    ).split(),
}
SETTINGS = {  # By the type that `kullback fields` prints.
    "int": ("abc", "1.5", "", "nan", "-5", "9" * 30, "True", "1,2", NO_TEXT),
    "float": ("abc", "", "nan", "1,2", "True", "-1e999", NO_TEXT),
    "True or False": ("maybe", "2", "", "nan", "0.5"),
    "str": ("", "nothing", "1", NO_TEXT),
    "tuple": ("abc", "1,abc", "nan", "1,,nan", "-1"),
    "or": ("", "nothing", "None", "1"),
}
SWEEPS = (
    ("agents", ('"dqn"', "[]", "[1]", '["nobody"]', '["dqn", "dqn"]', "true", "{}")),
    ("environments", ('["nowhere"]', "[]", '["tokens/arithmetic"]', "3", '[["toy/chain"]]')),
    ("seeds", ("0", "-1", "3000000000", "1.5", '"x"', "[1, 1]", "[[1]]", "[-1]", "nan", "[]")),
    ("steps", ("0", "-1", '"x"', "1e400", "[]", "1.5", "nan", "true", f"{2**63}", '""')),
    ("threads", ("0", "-1", '"x"', "1.5", "1000000000", "[]", "true")),
    ("num_envs", ("0", '"x"', "-1", "1e18", "[]", "{}", "nan")),
    ("torso", ("1", "[]", '"nothing"', "true", '["mlp", "mlp"]', "{}")),
    ("learning_rate", ('"x"', "[]", "[nan]", "{}", "[[]]", "true", "[1e-3, 1e-3]", "-1")),
    ("batch_size", ("0", "1.5", "[]", '"x"', "[0]", f"{10**18}")),
    ("nothing", ("1",)),
    ("", ("=", "agents", "[plan]\n[plan]", '"\\ud800"=1', "\0")),
)
