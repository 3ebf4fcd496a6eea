"""What ptxas says of wgmma: known in all its words, and found in a log."""

import re
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: there is no assembler")

from benchmarks.harness.assembler import SENTENCES, ptxas_log, waits_added

# The accumulator is touched inside the loop while a product may still be in flight.
WGMMA_LOOP = """
    .version 8.0
    .target sm_90a
    .address_size 64
    .visible .entry kernel(.param .u64 out, .param .u32 n)
    {{
        .reg .f32 %f<5>;
        .reg .b64 %rd<3>;
        .reg .b32 %r<3>;
        .reg .pred %p<2>;
        ld.param.u64 %rd1, [out];
        ld.param.u32 %r1, [n];
        mov.f32 %f1, 0f00000000; mov.f32 %f2, %f1; mov.f32 %f3, %f1; mov.f32 %f4, %f1;
        mov.u64 %rd2, 0;
    LOOP:
        wgmma.fence.sync.aligned;
        wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%f1,%f2,%f3,%f4}}, %rd2, %rd2, 1, 1, 1, 0, 0;
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned {in_flight};
        add.f32 %f1, %f1, 0f3f800000;
        sub.u32 %r1, %r1, 1;
        setp.ne.u32 %p1, %r1, 0;
        @%p1 bra LOOP;
        wgmma.wait_group.sync.aligned 0;
        st.global.f32 [%rd1], %f1;
        ret;
    }}
"""


@pytest.mark.parametrize(("in_flight", "code"), [(1, "C7514"), (0, None)])
def test_a_product_that_is_waited_for_is_found_in_the_words_of_the_assembler(in_flight, code):
    found = waits_added(ptxas_log(textwrap.dedent(WGMMA_LOOP).format(in_flight=in_flight), 90))
    assert [sentence.split(":")[0] for sentence in found] == ([] if code is None else [code])


def test_a_wait_that_the_assembler_injects_is_found_once_however_often_it_is_said():
    said = "ptxas info    : (C7517) warpgroup.wait is injected in around line {} by compiler to allow use of registers "
    said += "defined by GMMA in function 'f'"
    log = "ptxas info    : 0 bytes gmem\n" + "\n".join(said.format(line) for line in (416, 900))
    assert waits_added(log) == ["C7517: warpgroup.wait is injected by compiler to allow use of registers defined by GMMA"]


def test_a_sentence_of_a_later_assembler_is_found_too():
    assert waits_added("ptxas info    : (C9999) wgmma takes its time in function 'f'") == ["C9999: wgmma takes its time"]


@pytest.mark.parametrize("arch", [90, 100])
def test_every_sentence_of_the_installed_assembler_about_wgmma_is_known(arch):
    from triton.backends.nvidia.compiler import get_ptxas

    texts = re.findall(rb"[\x20-\x7e]{20,}", Path(get_ptxas(arch).path).read_bytes())
    about = {text.decode() for text in texts if re.search(rb"wgmma|warpgroup|GMMA", text) and text.count(b" ") >= 4}
    assert len(about) >= 12
    assert {text for text in about if not any(re.search(sentence, text) for sentence in SENTENCES)} == set()
