// The one row of a product, laid in shared memory and normalised on the way where that is asked
// for.
#pragma once

#include "kernels/cuda/decoded_product.cuh"
#include "kernels/cuda/dependent_launch.cuh"

namespace everlong::cuda::decoded {

// The weights of the norm's vectors that a thread normalises.
__device__ inline void LoadNormWeights(const Product& p, float4 (&weights)[Norm::kThreadVectors]) {
#pragma unroll
  for (int j = 0; j < Norm::kThreadVectors; ++j) {
    const int i = j * kThreads + static_cast<int>(threadIdx.x);
    if (4 * i < p.inputs) weights[j] = reinterpret_cast<const float4*>(p.norm.weight)[i];
  }
}

// As NormalizeRows, to `to`.
__device__ inline void NormalizeRow(const Product& p, const float4 (&weights)[Norm::kThreadVectors],
                                    uint2* to) {
  const int64_t row = p.norm.source_row == nullptr ? 0 : *p.norm.source_row;
  const auto* from = reinterpret_cast<const float4*>(p.norm.x + row * p.inputs);
  float4 x[Norm::kThreadVectors];
#pragma unroll
  for (int j = 0; j < Norm::kThreadVectors; ++j) {
    const int i = j * kThreads + static_cast<int>(threadIdx.x);
    x[j] = 4 * i < p.inputs ? from[i] : float4{};
  }
  float squares = 0.0f;
#pragma unroll
  for (const float4& four : x) {
    squares += four.x * four.x;
    squares += four.y * four.y;
    squares += four.z * four.z;
    squares += four.w * four.w;
  }
  const float factor = NormFactor(squares, p.inputs, p.norm.eps);
#pragma unroll
  for (int j = 0; j < Norm::kThreadVectors; ++j) {
    const int i = j * kThreads + static_cast<int>(threadIdx.x);
    if (4 * i >= p.inputs) continue;
    const __nv_bfloat162 low = {Normalized(x[j].x, factor, weights[j].x),
                                Normalized(x[j].y, factor, weights[j].y)};
    const __nv_bfloat162 high = {Normalized(x[j].z, factor, weights[j].z),
                                 Normalized(x[j].w, factor, weights[j].w)};
    const uint2 four = {reinterpret_cast<const uint32_t&>(low),
                        reinterpret_cast<const uint32_t&>(high)};
    to[i] = four;
    if (blockIdx.y == 0) reinterpret_cast<uint2*>(p.norm.out)[i] = four;
  }
}

__device__ inline void CopyRow(const Product& p, uint4* to) {
  constexpr int kAtOnce = 8;
  const auto* from = reinterpret_cast<const uint4*>(p.x);
  const int vectors = p.inputs / 8;
  for (int first = threadIdx.x; first < vectors; first += kAtOnce * kThreads) {
    uint4 some[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (first + j * kThreads < vectors) some[j] = from[first + j * kThreads];
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (first + j * kThreads < vectors) to[first + j * kThreads] = some[j];
    }
  }
}

// Waits for the kernel ahead; then lays the row that is alone at `row`, with zeros behind it.
template <class S>
__device__ void LayRow(const Product& p, uint4* row) {
  for (int i = p.inputs / 8 + threadIdx.x; i < p.units * S::kUnit / 8; i += kThreads) row[i] = {};
  float4 norm_weights[Norm::kThreadVectors];
  if (p.norm.x != nullptr) LoadNormWeights(p, norm_weights);
  WaitForPrevious();
  if (p.norm.x != nullptr) {
    NormalizeRow(p, norm_weights, reinterpret_cast<uint2*>(row));
  } else {
    CopyRow(p, row);
  }
  __syncthreads();
}

}  // namespace everlong::cuda::decoded
