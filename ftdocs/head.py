"""The engine of the method features: no steps, but one pass over the rows and a logistic regression in the head."""

from sklearn.metrics import log_loss

from ftdocs import evaluate, models
from ftdocs.job import Job
from ftdocs.methods.features import fill_head, headless, linear_head, logistic_regression


def run(work: Job) -> int:
    """Fit the head of the job's classifier, whose other weights stay as they are; 1, as if it were one step."""
    model, progress = work.model, work.progress
    if work.held_out:
        work.validate(0)
    progress.begin(0, 1)
    labels = [row["label"] for row in work.rows]
    progress.count(*work.origin(list(work.rows)))
    with headless(model):
        given = evaluate.predict(
            model, work.rows, models.pad_token_id(work.tokenizer), precision=work.recipe.train.precision
        )
    classifier = logistic_regression(given, labels, bias=linear_head(model).bias is not None)
    fill_head(model, classifier)
    progress.step_loss = float(log_loss(labels, classifier.predict_proba(given)))
    progress.step_done(1)
    progress.write(1, {"loss": progress.mean_loss()})
    if work.held_out:
        work.validate(1)
    progress.end()
    return 1
