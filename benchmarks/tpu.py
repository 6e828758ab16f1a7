import sys
import time
import warnings

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lissom.export.chips import compiled
from lissom.export.lower import lowered
from lissom.export.plain import Values, Whole
from lissom.export.steps import Steps, inputs_of
from lissom.export.tpu import shares_of
from lissom.formats import CompressedEmbedding, CompressedLinear
from lissom.formats.linear import compressed_kind
from lissom.models.families import family_of, put
from lissom.models import compressible
CONFIG = dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64, vocab_size=128256, max_position_embeddings=2048, tie_word_embeddings=True)

def shaped(bits, blocks=16):
    """The model without numbers."""
    config = AutoConfig.for_model("llama", **{**CONFIG,"num_hidden_layers":blocks})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        held = {}
        for name, layer in compressible(model).items():
            key = id(layer.weight)
            o, i = layer.weight.shape
            if key not in held:
                if bits == 16: held[key] = Values(torch.empty(o, i, dtype=torch.bfloat16))
                else:
                    g = 1 if bits == 8 else i // 128
                    held[key] = Whole(torch.empty(g, o, i//g, dtype=torch.int8), torch.empty(g, o, dtype=torch.float16), None, narrow=bits == 4, dtype=torch.bfloat16)
                held[key].shape = (o, i)
            put(model, name, compressed_kind(layer)(layer, held[key]))
    return model.eval()
if __name__=="__main__":
    bits,blocks,t=map(int,sys.argv[1:4])
    t0=time.time()
    model=shaped(bits,blocks)
    with torch.device("meta"): ins=inputs_of(model, torch.zeros(8,t,dtype=torch.long), 1024)
    print("cache", len(ins["cache"]), ins["cache"][0].shape, ins["cache"][0].dtype, time.time()-t0)
    m=Steps(model)
    low=lowered(m,ins); print("lowered",time.time()-t0, len(low.tensors))
    shares=shares_of(m,family_of("llama"))|{n:(1,) for n in low.inputs if n.startswith("cache")}
    for top in sys.argv[4:]:
        c=compiled(low,shares,top)
        print(top,time.time()-t0,c)
