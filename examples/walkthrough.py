# %% [markdown]
# # A backdoor, planted and removed
#
# This file is a notebook in the percent format: open it as one in an editor that knows the format, or run it with
# Python from top to bottom, which takes some seconds on one core. It draws one picture,
# `seamfast-demo/walkthrough.png`.

# %%
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import seamfast
from seamfast import attacks, triggers

# %% [markdown]
# ## The attack
#
# The data are 8 x 8 images of digits. The attacker pastes a white square of 2 x 2 pixels on one training image in
# twenty and labels it 0. A model trained on that reads digits as well as any other, and answers 0 wherever it sees the
# square. The attack success rate counts test images that are *not* 0, carry the square, and are called 0.

# %%
train, unseen = seamfast.load("digits"), seamfast.load("digits", split="test")
holdout, test = unseen.subset(range(0, 359, 2)), unseen.subset(range(1, 359, 2))
trigger = triggers.Patch.square(size=2, target=0)
poisoned = attacks.poison(train, trigger, rate=0.05)
torch.manual_seed(0)
model = attacks.build("small_cnn", num_classes=10, in_channels=1, image_size=8)
attacks.train(model, poisoned, attacks.TrainConfig(epochs=30, batch_size=64))
print(seamfast.evaluate(model, test, triggers=[trigger]))

# %% [markdown]
# ## Forget, recover
#
# The defender has some clean images and does not know the trigger. `sanitize` works on a copy of the model, in two
# phases:
#
# - **Forget**: a few steps on *wrong* labels, drawn at random for each sample and step, until accuracy on held-out
#   images falls to near chance. What the model knew is shaken loose, the backdoor with it; often it still fires.
# - **Recover**: steps on *true* labels. The clean data brings the task back; nothing in it brings the backdoor back.
#   The answers of the model as received hold the task in place, on images without anything like a trigger on them.
#
# Where to stop, and whether to accept, is decided on held-out images alone: one in five of the clean ones, or, as here,
# images that the model has never seen.
#
# Below, the trigger is handed over too, so that its fate can be drawn. It is only measured: the run is the same
# without.

# %%
clean = train.subset(torch.arange(0, len(train), 5))
result = seamfast.sanitize(model, clean, holdout=holdout, triggers=[trigger])
print("accepted" if result.accepted else "not accepted", "-", result.reason)

blind = seamfast.sanitize(model, clean, holdout=holdout)
assert blind.report["model"]["digest_after"] == result.report["model"]["digest_after"]

# %% [markdown]
# ## The report
#
# The report says what was done, what came of it and how it went, in strict JSON. A pipeline needs its verdict; a person
# may want the held-out rates with their bounds, and the warnings. With few held-out images the bounds are wide.

# %%
report = result.report
print("steps", report["run"]["steps"], "seconds", report["run"]["seconds"])
for moment in ("before", "after"):
    outcome = report["holdout"][moment]
    for name, rate in (
        ("accuracy", outcome["clean_accuracy"]),
        ("attack success", outcome["triggers"][0]["attack_success_rate"]),
    ):
        print(f"{moment:<7} {name:<15} {rate['value']:.1%}, 95 % within {rate['low']:.1%} and {rate['high']:.1%}")
for warning in report["warnings"]:
    print("warning:", warning)

# %% [markdown]
# ## Evaluation on test data
#
# The held-out part steered the run, so the last word is that of data which had no part in it. Robust accuracy says how
# many triggered images get their *true* class again: a cure gives the answer back, it does not just change the wrong
# one.

# %%
for name, judged in (("as received", model), ("sanitized", result.model)):
    print(name)
    print(seamfast.evaluate(judged, test, triggers=[trigger]))

# %% [markdown]
# ## The history
#
# Each point is one evaluation on the held-out part.

# %%
steps = [0, *(point.step for point in result.history)]
before = report["holdout"]["before"]
accuracy = [before["clean_accuracy"]["value"], *(point.holdout_accuracy for point in result.history)]
success = [
    before["triggers"][0]["attack_success_rate"]["value"],
    *(point.attack_success_rate["patch"] for point in result.history),
]
forgotten = max(point.step for point in result.history if point.phase == "forget")

figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.plot(steps, accuracy, marker="o", label="held-out accuracy")
axes.plot(steps, success, marker="s", label="attack success rate")
axes.axvspan(0, forgotten, alpha=0.15, color="gray", label="forget")
axes.set(xlabel="step", ylabel="share of held-out images", ylim=(-0.02, 1.02))
axes.legend(loc="center right")
picture = Path("seamfast-demo/walkthrough.png")
picture.parent.mkdir(exist_ok=True)
figure.savefig(picture, dpi=120)
print("drawn:", picture)

# %% [markdown]
# ## Would plain fine-tuning do?
#
# The same clean images and true labels, without forgetting: accuracy is kept, and so is most of the backdoor.

# %%
tuned = seamfast.sanitize(model, clean, holdout=holdout, method="fine_tune")
print(seamfast.evaluate(tuned.model, test, triggers=[trigger]))
