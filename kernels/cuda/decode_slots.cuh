// Tiles in shared memory. Units of 16 bytes of a row are permuted such that lanes that read at the
// same time meet different banks.
#pragma once

#include <cstddef>

#include "kernels/cuda/decode_fold.cuh"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/shared_memory.cuh"

namespace everlong::cuda::decode {

// A tile of blocks: keys, which become bf16 and turned, values as they are stored, and scales. In
// bytes, of shapes that are not padded.
template <class S>
struct Slot {
  using Kv = typename S::Kv;
  static constexpr int kKeyBytes = S::kDim * 2;
  static constexpr int kValueBytes = S::kDim * Kv::kBytes;
  static constexpr int kValues = kBlockTokens * kKeyBytes;
  static constexpr int kScales = kValues + kBlockTokens * kValueBytes;
  static constexpr int kScaleBytes = Kv::kScaled ? 2 * kBlockTokens * 4 : 0;
  static constexpr int kBlockBytes = kScales + kScaleBytes;
  static constexpr int kBytes = kTileBlocks * kBlockBytes;

  // Where byte `at` of a block's key or value lies.
  __device__ static int Key(int token, int at) {
    return token * kKeyBytes + Permuted<kKeyBytes>(at, token % 2 * 4);
  }
  __device__ static int Value(int token, int at) {
    return kValues + token * kValueBytes + Permuted<kValueBytes>(at, token / 2 * 2);
  }
  // The same before the key is bf16.
  __device__ static int StoredKey(int token, int at) {
    return Kv::kScaled ? token * kValueBytes + at : Key(token, at);
  }

 private:
  template <int kRowBytes>
  __device__ static int Permuted(int at, int swap) {
    return (at / 16 ^ swap % (kRowBytes / 16)) * 16 + at % 16;
  }
};

// The warp starts to copy a tile, in a group; values that are not seen become zero.
template <class S>
__device__ inline void StartCopies(const Tile& tile, std::byte* slot) {
  using At = Slot<S>;
  constexpr int kUnits = At::kValueBytes / 16;  // of a row
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int b = 0; b < kTileBlocks; ++b) {
    const SeenBlock& block = tile.blocks[b];
    const bool exists = block.tokens > 0;
    const uint32_t to = SharedAddress(slot + b * At::kBlockBytes);
#pragma unroll
    for (int i = 0; i < kBlockTokens * kUnits; i += 32) {
      const int token = (i + lane) / kUnits;
      const int at = (i + lane) % kUnits * 16;
      const std::byte* from = block.address + (i + lane) * 16;
      CopyAsync<16>(to + At::StoredKey(token, at), from, exists);
      CopyAsync<16>(to + At::Value(token, at), from + kBlockTokens * At::kValueBytes,
                    token < block.tokens);
    }
    if (lane < At::kScaleBytes / 16) {
      const std::byte* from = block.address + 2 * kBlockTokens * At::kValueBytes;
      CopyAsync<16>(to + At::kScales + lane * 16, from + lane * 16, exists);
    }
  }
  EndCopies();
}

// Makes the keys of a tile that has arrived bf16 and turns them.
template <class S>
__device__ inline void TurnKeys(const Tile& tile, const RopeTable& rope, std::byte* slot) {
  using At = Slot<S>;
  using Kv = typename S::Kv;
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int b = 0; b < kTileBlocks; ++b, slot += At::kBlockBytes) {
    const int offset = tile.blocks[b].offset;
    if (!Kv::kScaled && offset < 0) continue;
    Words<4> key[S::kDim / 32];
#pragma unroll
    for (int j = 0; j < S::kDim / 32; ++j) {
      const int at = At::StoredKey(g, (32 * j + 8 * t) * Kv::kBytes);
      key[j] = Kv::Open(*reinterpret_cast<const Chunk<Kv>*>(slot + at));
    }
    if (offset >= 0) {
      const auto* turns =
          reinterpret_cast<const float4*>(rope.offset) + (offset + g) * (S::kDim / 4) + 4 * t;
#pragma unroll
      for (int i = 0; i < S::kDim / 16; ++i) {
        const int j = i / 4;
        TurnOpened<Kv>(key[j].w[i % 4], key[j + S::kDim / 64].w[i % 4], turns[16 * j + i % 4]);
      }
    } else {
#pragma unroll
      for (int j = 0; j < S::kDim / 32; ++j) key[j] = Bf16Of<Kv>(key[j]);
    }
    if constexpr (Kv::kScaled) __syncwarp();  // bf16 keys take the place of stored ones
#pragma unroll
    for (int j = 0; j < S::kDim / 32; ++j) {
      *reinterpret_cast<Words<4>*>(slot + At::Key(g, 64 * j + 16 * t)) = key[j];
    }
  }
}

// Scores of the blocks of a tile, whose keys are turned, for a query that suits both.
template <class S, class Query>
__device__ inline void MultiplyKeys(const std::byte* slot, const Query& query, Scores& scores) {
  using At = Slot<S>;
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
  Words<4> keys[kTileBlocks][S::kDim / 32];
#pragma unroll
  for (int b = 0; b < kTileBlocks; ++b, slot += At::kBlockBytes) {
#pragma unroll
    for (int j = 0; j < S::kDim / 32; ++j) {
      keys[b][j] = *reinterpret_cast<const Words<4>*>(slot + At::Key(g, 64 * j + 16 * t));
    }
  }
  Multiply<S>(keys, query, scores);
}

// Applies `factor` and the keys' scales, and leaves out what is not seen.
template <class S>
__device__ inline void ScaleScores(const std::byte* slot, const Tile& tile, float factor,
                                   Scores& scores) {
  const int g = threadIdx.x % 32 / 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int b = i / 2;
    float scale = factor;
    if constexpr (S::Kv::kScaled) {
      scale *=
          reinterpret_cast<const float*>(slot + b * Slot<S>::kBlockBytes + Slot<S>::kScales)[g];
    }
    scores[i] = g < tile.blocks[b].tokens ? scores[i] * scale : -INFINITY;
  }
}

template <class S>
__device__ inline void LoadValues(const std::byte* slot, const Tile& tile, Values<S>& values) {
  using At = Slot<S>;
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int b = 0; b < kTileBlocks; ++b, slot += At::kBlockBytes) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int c = 0; c < S::kDim / 64; ++c) {
        const int at = At::Value(2 * t + i, (64 * c + 8 * g) * S::Kv::kBytes);
        values.chunks[b][i][c] = *reinterpret_cast<const Chunk<typename S::Kv>*>(slot + at);
      }
    }
    if constexpr (S::Kv::kScaled) {
      const auto* scales = reinterpret_cast<const float*>(slot + At::kScales);
      values.scales[b] = g < tile.blocks[b].tokens ? scales[kBlockTokens + g] : 0.0f;
    }
  }
}

}  // namespace everlong::cuda::decode
