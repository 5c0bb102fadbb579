from __future__ import annotations

import pytest
import torch

from dat_ray.bench.kernels import Kernel, by_kind, kind_of, profiled

# Names as PyTorch's profiler has shown them on GPUs, shortened, and operators on a CPU.
NAMES = {
    "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 64, 64, 4>>": "attention",
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80": "attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_cublas": "products",
    "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT": "products",
    "void cublasLt::splitKreduce_kernel<32, 16, int, __nv_bfloat16, float>": "products",
    "aten::mm": "products",
    "sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize64x64x32": "products in float32",
    "ampere_sgemm_64x32_sliced1x4_nt": "products in float32",
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>": "elementwise",
    "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>": "copies",
    "Memcpy DtoD (Device -> Device)": "copies",
    "void at::native::(anonymous namespace)::CatArrayBatchedCopy<float>": "copies",
    "aten::cat": "copies",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float>>>": "sums and norms",
    "void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, float>": "sums and norms",
    "triton_poi_fused__to_copy_add_mul_silu_3": "compiled",
    "aten::silu": "elementwise",
    "ncclDevKernel_AllReduce_Sum_f32_RING_LL": "between GPUs",
    "some kernel nobody knows": "other",
}


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_a_kernel_is_told_by_its_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_kinds_are_added_up_and_sorted() -> None:
    found = by_kind([Kernel("aten::mul", 3, 1.0), Kernel("aten::mm", 2, 2.5), Kernel("aten::add", 1, 0.5), Kernel("?", 1, 0.0)])
    assert list(found) == ["products", "elementwise", "other"]
    assert found["elementwise"] == {"calls": 4, "seconds": 1.5, "share": 1.5 / 4}
    assert by_kind([]) == {}


def test_operators_are_counted_on_a_cpu() -> None:
    a = torch.randn(64, 64)

    def work() -> None:
        for _ in range(5):
            (a @ a).relu()

    found = profiled(work, torch.device("cpu"))
    assert found["kinds"]["products"]["calls"] == 5
    assert 0 < found["busy_seconds"] <= found["wall_seconds"]
    assert found["longest"][0]["seconds"] >= found["longest"][-1]["seconds"]
