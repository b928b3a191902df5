"""One training step: what all of this is for. A step of your own that does more is these lines and yours between them."""

from scratchnet.parallel import ranks


def train_step(model, criterion, optimizer, x, labels):
    """Forward, loss, backward, update; returns the loss, a 0-d array, and the logits."""
    model.zero_grad()
    logits = model(x)
    loss = criterion(logits, labels)
    dlogits = criterion.backward()
    model.backward(dlogits)
    ranks.sum_gradients(model.parameters())
    optimizer.step()
    return loss, logits
