"""Layers and Hugging Face classes of the compressed model.

Importing this package registers model type ``lite-whisper`` with ``AutoConfig``, ``AutoModel``,
``AutoModelForSpeechSeq2Seq``, ``AutoProcessor``, ``AutoTokenizer``, ``AutoFeatureExtractor`` and
the ``automatic-speech-recognition`` pipeline.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    WhisperFeatureExtractor,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.pipelines import PIPELINE_REGISTRY

from liteasr.modeling.attention import ReducedAttention
from liteasr.modeling.configuration import LINEAR_NAMES, LiteWhisperConfig
from liteasr.modeling.convolution import FramedConvolution
from liteasr.modeling.fast import use_fast_inference, use_plain_inference
from liteasr.modeling.graphs import use_cuda_graphs, use_no_cuda_graphs
from liteasr.modeling.linear import LowRankLinear, PivotedLinear
from liteasr.modeling.pipeline import LiteWhisperPipeline
from liteasr.modeling.rank_space import (
    RankSpaceAttention,
    use_plain_attention,
    use_rank_space,
)
from liteasr.modeling.whisper import LiteWhisperForConditionalGeneration

__all__ = [
    "LINEAR_NAMES",
    "FramedConvolution",
    "LiteWhisperConfig",
    "LiteWhisperForConditionalGeneration",
    "LiteWhisperPipeline",
    "LowRankLinear",
    "PivotedLinear",
    "RankSpaceAttention",
    "ReducedAttention",
    "use_cuda_graphs",
    "use_fast_inference",
    "use_no_cuda_graphs",
    "use_plain_attention",
    "use_plain_inference",
    "use_rank_space",
]

AutoConfig.register("lite-whisper", LiteWhisperConfig, exist_ok=True)
# The published usage is AutoModel.from_pretrained(...).generate(...), so AutoModel gives the
# generating class too.
AutoModel.register(LiteWhisperConfig, LiteWhisperForConditionalGeneration, exist_ok=True)
AutoModelForSpeechSeq2Seq.register(
    LiteWhisperConfig, LiteWhisperForConditionalGeneration, exist_ok=True
)
AutoProcessor.register(LiteWhisperConfig, WhisperProcessor, exist_ok=True)
AutoTokenizer.register(LiteWhisperConfig, WhisperTokenizer, exist_ok=True)
AutoFeatureExtractor.register(LiteWhisperConfig, WhisperFeatureExtractor, exist_ok=True)
PIPELINE_REGISTRY.supported_tasks["automatic-speech-recognition"]["impl"] = LiteWhisperPipeline
