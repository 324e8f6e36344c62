// Sixteen draws of philox.h at a time.

#pragma once

#include <cstdint>

#include "lanes.h"
#include "philox.h"

namespace seamfast {

using WideWords = std::uint64_t __attribute__((vector_size(128)));

// The first word of draw(seed, high << 32 | low, when, stream) for each lane.
SEAMFAST_INLINE Words draw_lanes(std::uint64_t seed, const Words& low, const Words& high, std::uint32_t when,
                                 Stream stream) {
  Words c0 = low, c1 = high, c2 = Words{} + when, c3 = Words{} + static_cast<std::uint32_t>(stream);
  auto k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const WideWords a = __builtin_convertvector(c0, WideWords) * 0xD2511F53U;
    const WideWords b = __builtin_convertvector(c2, WideWords) * 0xCD9E8D57U;
    c0 = __builtin_convertvector(b >> 32, Words) ^ c1 ^ k0;
    c2 = __builtin_convertvector(a >> 32, Words) ^ c3 ^ k1;
    c1 = __builtin_convertvector(b, Words);
    c3 = __builtin_convertvector(a, Words);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c0;
}

}  // namespace seamfast
