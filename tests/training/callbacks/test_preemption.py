import os
import signal

from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed, multiprocessing

from lit_hf.training.callbacks.preemption import EndTogether
from tests.slurm import free_ports
from tests.training.callbacks.tiny import Batches, TinyModule, tiny_trainer


class Late(TinyModule):
    """Rank 1 is told to end in the middle of a step."""

    def on_before_optimizer_step(self, optimizer) -> None:
        if self.global_rank == 1 and self.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def train(rank, folder, heard):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GROUP_RANK": "0"}
    settings = {"devices": 2, "strategy": "ddp_find_unused_parameters_true", "use_distributed_sampler": False}
    trainer = tiny_trainer(folder, callbacks=[EndTogether()], max_epochs=2, **settings)
    before = signal.getsignal(signal.SIGTERM)
    try:
        trainer.fit(Late(), Batches(20))
    except SIGTERMException:
        heard.put((rank, trainer.global_step, signal.getsignal(signal.SIGTERM) == before))
    distributed.destroy_process_group()


def test_all_ranks_end_before_the_batch_after_the_signal(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", str(free_ports(1)[0]))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    heard = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(train, (tmp_path, heard), nprocs=2)
    assert sorted(heard.get() for _ in range(2)) == [(0, 4, True), (1, 4, True)]


def test_a_single_process_is_left_to_lightning(tmp_path):
    seen = []

    class Look(TinyModule):
        def on_train_batch_start(self, batch, batch_idx) -> None:
            seen.append(signal.getsignal(signal.SIGTERM))

    ours = EndTogether()
    tiny_trainer(tmp_path, callbacks=[ours]).fit(Look(), Batches(2))
    assert seen and all(handler != ours._note for handler in seen)
