"""What docs/reference/training-rules.md has above the rules of a topic: definitions, limits, figures.

docs/training.md teaches the mechanisms; what a reader looks up about them is here, one text a topic.
"""

from __future__ import annotations

NOTES: dict[str, str] = {
    "Rows and random numbers": """
    order(seed, epoch)  = a permutation of all rows, numpy's PCG64 seeded with (seed, epoch)
    window w            = order[w·B : (w+1)·B]
    a worker's part     = a contiguous, balanced slice of the window

A worker never gets a single row while another has more, because batch norm cannot train on one; it then gets none, and
takes part in the exchange with zeros.
""",
    "Batch norm": """
Each micro-batch leaves its own mean and variance, they are merged exactly, and their sums travel with the gradients. A
window that is skipped, or repeated with smaller micro-batches, leaves nothing in the running statistics.

| `train.batch_norm_rows` | a group is | training depends on |
| --- | --- | --- |
| a number G | G neighbors in the window (up to 2G - 1 where it does not divide), on whichever worker; each worker has \
whole groups, so more workers than groups leave some idle | neither workers nor micro-batches: to 1e-6 with 1, 2 and 4 \
workers in a test in float64 (in float32 two epochs of digits differ by 5e-7 between 1 and 2 workers) |
| `null` | a micro-batch | the size of a micro-batch and, through it, the number of workers |
| `auto`, no GPU | an eighth of the global batch, at least 16, at most a worker's share and a micro-batch | as for a \
number; where share or micro-batch is the limit, the reason names it |
| `auto`, GPUs | a micro-batch, because groups cost a GPU time | as for `null`, with the reason |

`manta explain` and `resolved.yaml` give the number with its reason. A search's trial with one worker therefore trains
as the run with two does, except for dropout, which the `cnn` has by default and which is drawn by worker and
micro-batch.

Where memory became too short for a group, its pieces are normalized by themselves. Groups cost less than a
measurement's noise on a CPU (the `cnn` on 64 images of 28×28, one core: 88 ms a forward and backward in groups of 16,
85 to 90 ms without).

A subclass of torch's layers with a forward of its own (timm has such) moves its statistics with each micro-batch; they
are averaged over workers at the end of an epoch, before validation.
""",
    "A changed spec": """
A training is known by what its weights depend on. Its checkpoints lie in `checkpoints/<digest of that>/`, with the
values in `training.json`. When the same command comes again with another spec, this table decides. What starts anew
names the keys that made it so, and the state of the earlier training stays until the new one has an epoch: with the old
values it goes on. `manta run --fresh` forgets all that the run has, whatever has changed.
""",
    "Gradient exchange": """
No worker waits for one that raised, not even in the middle of backward: every worker sends every bucket once for each
attempt at a window. `train.exchange.bucket_mib` is the size of a bucket; `train.exchange.wire: bf16` sends gradients in
bf16 and halves the bytes.
""",
    "Precision, clipping, values that are not finite": """
A window whose gradient is not finite is skipped. Skips in fp16 that the scaler makes are normal and end when the scale
fits; a scale below 1e-4 counts as diverged, and the error names the layer. In bf16 and fp32 more than
`train.faults.nonfinite_updates` windows in a row lead to a return to the last checkpoint, after which those windows are
left out (`train.faults.rollbacks` times), and then to an error that names the layer whose output, or whose gradient,
was not finite.
""",
    "Learning rate and growth": """
The shapes are the values of [`schedule.name`](spec.md#schedulespec). The warm-up of `one_cycle` is half a cosine from
1/25 of the peak. `train.growth` grows linearly or at milestones; the micro-batch, and so the memory, stays.
""",
    "Quantities": """
The way back is the last part of the model. In training mode the module answers what is learned, else values in the
target's own unit. With a bend the gradient is of relative errors rather than of absolute ones.

`data.target_transform: auto` standardizes. Where the training target's skewness is beyond ±0.5, ridge regression and
30 boosted trees learn each form from up to 4,000 prepared rows, and are judged by their RMSE on validation rows after
the way back; a bend must gain 5 % on what is simpler. That takes about a second, and the figures are the reason that
`resolved.yaml`, `manta explain` and the event stream give. `none` learns the values as they are.

After a bend an answer ends 5 % of the training targets' range beyond their ends, and a quantity that never was negative
in training stays so, because an exponential turns a small error into a wild value. Yeo-Johnson is fitted on
(target - median) / quartiles with a λ of 0 to 2.

Conversions to INT8, FP16 and BF16 leave the way back in float, and INT8 the layer before it: FP16 ends at 65,504, BF16
has three digits. Parity, at the export and when an endpoint loads a bundle, counts its absolute tolerance in deviations
of the training target, and the relative one from its mean: a hundredth of 200,000 ± 3,000 would be no check.

Measured (one core, nothing but `data` in the spec; `tests/unit/loop_tests/test_quantities.py` has both in small):

| target | R² as it is | default | boosted trees (scikit-learn), same rows |
| --- | --- | --- | --- |
| abalone-like, whole rings × 1000 + 200000, 3,000 rows | -3714 | 0.574 (`standard`) | 0.539 |
| log-normal price, heavy right tail, 1,500 rows | -0.78 | 0.916 (`log1p`; 0.823 with `standard`) | 0.707 |
""",
    "Epochs: best, stopping, metrics": """
**Metrics.** Loss and accuracy of an epoch are a sum over all workers divided by a count over all workers, once; a mean
of workers' means would weight a worker with ten rows like one with ninety. For `validation.macro_f1` and
`validation.balanced_accuracy` workers add up their confusion matrices, and scikit-learn computes the metric from the
total, only where `train.best.metric` names one, because importing scikit-learn takes each worker a second. The evaluate
stage's metrics are scikit-learn's: accuracy, balanced accuracy, macro precision, recall and F1, log loss, ROC AUC,
average precision, the confusion matrix, and the expected calibration error of the predicted class over 15 bins.

**`report.html`** has, beside the metrics, ROC, precision-recall and calibration curves (against the rest, with micro
and macro averages, for more than two classes), or residuals of a quantity; a **baseline**: what one answer for every
row reaches, and for tables what an untuned scikit-learn model does (boosted trees, a linear model beyond 256 features)
on at most 10,000 training rows; and the **importance** of each raw column: how much the network's test loss rises when
the column's values change rows, with its deviation over five shuffles of at most 2,000 rows. The number of rows follows
from counts, never from a clock, so all of it is the same in each run; a table like Adult takes two seconds.
`stages/evaluate/evidence.json` has the points.

**Memory** in the log is a GPU's peak of allocated tensors, or a CPU process's resident size.

    MFU = FLOPs of a row, forward and backward · rows a second / (peak FLOP/s of one device · workers)

FLOPs are counted by the formulas of torch's flop counter in the first update that is inspected. The peak is the data
sheet's for the GPUs listed in `trainers/loop/diagnostics/utilization.py` (fp32 without TF32), and on a CPU what matrix
products reach at that moment. For another GPU, or without inspections, there is no MFU.

**Inspections** are made by fused kernels on rank 0 and read in one go: for each weight the norm of its gradient and of
itself, how much this update changed it and how much it has changed since the last inspection; for each activation mean,
spread, the share of dead units and of values that are not finite. Training with them ends with the same bytes as
without. A value that is not finite is traced to the first layer that put it out, or to the layer whose gradient has it.

**`--profile N`** sets `train.profile_updates`: N updates after the first five are recorded, one file for each worker.
""",
    "Checkpoints and resume": """
With another number of workers rows, global batches and schedule stay exact, and so does batch norm within its groups;
dropout draws differ. Checkpoints are written between windows only, so none holds half a sum.

An attempt that was replaced by a newer one can no longer write, not even if it was only slow: each attempt fills a
temporary folder of its own name, and renames it under a lock under which it also checks that `fence.json` still names
it. The newer one takes that lock to write its own name there.
""",
    "More and fewer workers, notices to stop": """
| run | where it trains | when that starts |
| --- | --- | --- |
| one worker, a host of its own, no GPU | one process, without Ray (`trainers/launch/local_worker.py`) | after check, \
while data is prepared |
| several workers, a host of its own, no GPU | Ray Train | when Ray stands, while data is prepared and trials run |
| GPUs, a cluster (`--address`), elastic workers | Ray Train | when training does: earlier they would hold what others \
wait for |

`train.workers: auto` is one worker below 10,000 training rows on a CPU: a second one starts later than the first is
done.

A thread beside the loop polls for a notice once a second; the loop reads a flag of its own process. The flag of each
worker travels with the gradients, so all stop after the same update and write a checkpoint at once.

* *A node will be taken away* when Ray marks it as draining: a cloud's preemption notice, `ray drain-node`, the
  autoscaler, a SIGTERM to `ray start`. The workers start anew on the nodes that stay, `train.faults.preemptions` times;
  this does not count as a lost worker.
* *Ctrl-C or SIGTERM to the driver* (`manta stop`): the checkpoint is waited for, 20 s at most, and the run ends.
""",
    "Failures": """
Ray's own retry, its checkpoint bookkeeping and `ray.train.report` are not used: metrics take the run's own channel,
because a report is a barrier over all workers and about one in two seconds gets through.
""",
    "Micro-batch and learning rate by trial": """
`train.batch_size_per_worker: auto` is probed when a run starts anew:

* It doubles from two rows until a size does not fit or is the worker's whole share of the global batch, then bisects to
  within 3 %. All workers try the same sizes in the same order, and the one with the least memory decides.
* *On a GPU* a size fits when forward and backward run and the allocator's peak stays under 90 % of what the driver
  reports as free. Each size is timed, and the smallest within 5 % of the best speed is taken: a larger one would only
  cost memory.
* *On a CPU* a size fits when the estimate stays under 90 % of `train.memory_per_worker_gib`, or of the worker's share
  of what is free. The largest is taken, 256 rows at most, and nothing is timed: timings differ from run to run, and the
  same spec is to give the same bytes.
* Weights, buffers, optimizer and random states are afterwards what they were before. The result is remembered in the
  run's folder `sizing/` under the model, its signature, precision, device and what else takes memory; it is written
  into `resolved.yaml` with its reason, and into checkpoints, so a run that goes on does not probe again.

`manta explain` shows the same size and reason before a run on a CPU; for a GPU it states that the probe will decide. It
also prints every other `auto` with its reason, the batch equation, updates an epoch, the learning-rate curve and the
memory of one worker. The memory is measured: autograd's hooks count what a forward on meta tensors would save. On the
shipped families it is within 15 % of the allocator's peak. Memory may become short all the same, for example when
another process takes it: then the micro-batch halves while training.

`train.find_learning_rate: true` runs a hundred windows with a rate that rises from 1e-6 to 1. The rate at which the
smoothed loss falls fastest takes the place of `train.optimizer.learning_rate`, is written into `resolved.yaml` with its
reason, and into checkpoints.

`python -m trainers.loop RUN --find batch` doubles and bisects in the same way, and takes the smallest size within 5 %
of the best speed.
""",
    "Speed and determinism": """
`benchmarks/training_cpu/README.md` has the figures beside hand-written loops, Accelerate, Lightning and a plain Ray
`TorchTrainer`.

* Rows are read by index, a whole micro-batch at a time.
* All gradients lie in one buffer for the whole run: they are cleared by one write, never freed and made anew.
* The optimizer's fused kernel is called on lists that are gathered once.
* On a GPU the host does not wait for the device in a steady update: whether a gradient was finite, clipping and the
  skip are decided there, and the numbers of an update are copied to the host and read when the next one's backward is
  queued. The learning rate of an update still depends on how many were really made: it is decided after that read.
  The results are, byte for byte, those of reading at once. It waits where an inspection or a checkpoint is due, and at
  the end of an epoch; with several workers once an update, for the flag that shows whether one of them failed.
* Python's garbage collector runs between epochs only.
* `train.compile: true` sends training forwards through `torch.compile`; inspected updates and validation run the plain
  model. `train.channels_last` lays images out for convolution kernels.
* torch's compiler is not imported where it is not used, which saves each worker a second before its first update.

`train.deterministic: true` makes torch and cuDNN take kernels with a fixed order, chooses nothing by timing (of the
micro-batch it takes the largest that fits), and sets `CUBLAS_WORKSPACE_CONFIG=:4096:8` in each worker before CUDA
starts; a value of your own must be one of the two for which cuBLAS is deterministic. An operation that has no such form
ends the run with its name and the module that called it. The settings are put back when the training ends.
""",
}
"""Topic of `training_rules.RULES` -> Markdown."""
