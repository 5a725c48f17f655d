"""What cards, pages and pictures say about their use: said here once, longer where there is more room."""

_STANDING = (
    "Not a medical device; not cleared by any regulator; clinical performance not established; "
    "not for the care of any person."
)
CARD_NOTICE = f"Research use only. {_STANDING}"
PAGE_NOTICE = (
    f"Research use only, not for clinical use. {_STANDING} A counterfactual shows what changes this model's score: it "
    "is not causal, not anatomy and not disease progression."
)
THRESHOLD_NOTICE = (
    "From its threshold on a finding is reported: the probability that balances missed findings and false alarms on "
    "validation images, not how likely the finding is in a person, nor how bad a miss would be."
)
PAGE_FOOTER = "Made with mediffusion-diffusers. Research use only, not for clinical use."
PICTURE_NOTICE = (
    "Research use only. Shows what changes this model's score: not causal, not anatomy, not disease progression."
)
BURNT_IN_NOTICE = ("RESEARCH USE ONLY", "Computed by a model. Not for clinical use.")
