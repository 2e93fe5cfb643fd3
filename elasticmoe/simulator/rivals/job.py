"""What is trained, and the speeds of the machines: the same for every model."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Job:
    """One training job. The defaults put a 16.4 B MoE on the nodes of the P3 trace."""

    parameters: float = 16.4e9
    """DeepSeek-MoE 16B, the largest model MoEvement measured (arXiv 2412.15411 Table 2)."""
    state_bytes_per_parameter: float = 12.0
    """fp32 master weight and two Adam moments: what a checkpoint holds."""
    weight_bytes_per_parameter: float = 2.0
    """bf16 compute weights."""
    step_s: float = 10.0
    """One step on `reference_nodes`. Assumed; the Crusoe demo of torchft had 9 s."""
    reference_nodes: int = 24
    """Nodes at which a step takes `step_s`: the mean of the P3 trace."""
    samples_per_step: float = 1536.0
    """Samples in one step on `reference_nodes`. Only scales the samples that are printed."""
    nodes_per_copy: int = 4
    """Nodes that together hold one whole copy of the model with its optimizer: no system can
    train on fewer. torchft's replica group has this size. Assumed."""
    network_bytes_per_s: float = 1.25e9
    """Per node and direction: p3.2xlarge has up to 10 Gb/s."""
    storage_bytes_per_s: float = 0.625e9
    """Per node, to durable storage, all nodes at once. Half the link: assumed, generous to
    everything that checkpoints often (Lazarus's testbed shares one 10 Gb/s NFS)."""
    relaunch_s: float = 45.0
    """Start a job's processes again after a node was lost, before it loads anything. Measured:
    torchrun --nnodes=1:2, 44.7 s (15 s keep-alive, 30 s last call)."""

    @property
    def state_bytes(self) -> float:
        """Training state that must survive."""
        return self.parameters * self.state_bytes_per_parameter

    @property
    def node_samples_per_s(self) -> float:
        """Samples one undisturbed node trains in a second."""
        return self.samples_per_step / self.step_s / self.reference_nodes

    def save_s(self, nodes: int) -> float:
        """Write the state to durable storage, or read it: every node its share."""
        return self.state_bytes / max(1, nodes) / self.storage_bytes_per_s

    def restart_s(self, nodes: int) -> float:
        """Relaunch and load a durable checkpoint."""
        return self.relaunch_s + self.save_s(nodes)

    def full_batch_step_s(self, nodes: int) -> float:
        """Length of a step that keeps its batch on fewer or more nodes."""
        return self.step_s * self.reference_nodes / max(1, nodes)
