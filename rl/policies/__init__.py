"""Policies: the rules that give each legal action a probability, and how they are stored.

`load_policy` reads any of them. They act in numpy alone; what needs torch is the fitting.
"""

from rl.policies.behavior import BehaviorModel, FittedBehavior, fit_behavior_model
from rl.policies.bucketed import BucketedPolicy
from rl.policies.regularized import RegularizedQPolicy
from rl.policies.scores import Scores
from rl.policies.softmax import SoftmaxPolicy
from rl.policies.storage import StoredPolicy, load_policy
from rl.policies.transformer import DecisionTransformer, SASRec
from rl.policies.uniform import UniformPolicy

__all__ = [
    "BehaviorModel",
    "BucketedPolicy",
    "DecisionTransformer",
    "FittedBehavior",
    "RegularizedQPolicy",
    "SASRec",
    "Scores",
    "SoftmaxPolicy",
    "StoredPolicy",
    "UniformPolicy",
    "fit_behavior_model",
    "load_policy",
]
