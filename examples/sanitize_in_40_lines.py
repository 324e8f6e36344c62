"""Plant a backdoor in a small model, remove it without knowing its trigger, and print what changed."""

import torch

import seamfast
from seamfast import attacks, triggers

train, unseen = seamfast.load("digits"), seamfast.load("digits", split="test")
holdout, test = unseen.subset(range(0, 359, 2)), unseen.subset(range(1, 359, 2))

# The attacker: a 2x2 white patch on one training image in twenty, each relabelled 0.
trigger = triggers.Patch.square(size=2, target=0)
torch.manual_seed(0)
model = attacks.build("small_cnn", num_classes=10, in_channels=1, image_size=8)
attacks.train(model, attacks.poison(train, trigger, rate=0.05), attacks.TrainConfig(epochs=30, batch_size=64))

# The defender: 288 clean images, others to decide on, and no trigger. Plain fine-tuning beside it, to compare.
clean = train.subset(torch.arange(0, len(train), 5))
results = {m: seamfast.sanitize(model, clean, holdout=holdout, method=m) for m in ("fine_tune", "seam")}

# Judged on test images that no one trained on, with the trigger that only the attacker knew.
print(f"{'':<12} {'accuracy':>9} {'attack success':>15} {'accepted':>9} {'seconds':>8}")
before = seamfast.evaluate(model, test, triggers=[trigger])
print(f"{'as received':<12} {before.clean_accuracy.value:>9.1%} {before.worst_attack_success_rate:>15.1%}")
for method, result in results.items():
    after = seamfast.evaluate(result.model, test, triggers=[trigger])
    print(
        f"{method:<12} {after.clean_accuracy.value:>9.1%} {after.worst_attack_success_rate:>15.1%}"
        f" {'yes' if result.accepted else 'no':>9} {result.report['run']['seconds']['total']:>8.1f}"
    )
