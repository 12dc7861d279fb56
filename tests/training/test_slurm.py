import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy

from lit_hf.training.slurm import own_environment


@pytest.fixture
def job(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.delenv("SLURM_JOB_NAME", raising=False)


def test_a_job_does_not_requeue_itself(job):
    (environment,) = own_environment([], "auto")
    assert isinstance(environment, SLURMEnvironment) and environment.auto_requeue is False


def test_the_environment_of_the_config_stays(job):
    assert own_environment([LightningEnvironment()], "auto") == []
    assert own_environment([], DDPStrategy(cluster_environment=SLURMEnvironment())) == []
    assert len(own_environment([], DDPStrategy())) == 1


def test_outside_of_a_job_there_is_none(monkeypatch):
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    assert own_environment([], "auto") == []


def test_a_shell_in_a_job_is_no_rank(job, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert own_environment([], "auto") == []
