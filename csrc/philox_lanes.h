// Sixteen draws of philox.h at a time.

#pragma once

#include <cstdint>

#include "lanes.h"
#include "philox.h"

namespace seamfast {

// The upper and the lower half of words times a constant.
template <int W>
struct Product {
  Words<W> high, low;
};

template <int W>
SEAMFAST_INLINE Product<W> product(const Words<W>& words, std::uint32_t by) {
  typedef std::uint64_t Wide __attribute__((vector_size(8 * W)));
  Product<W> out;
  for (int i = 0; i < kLanes / W; ++i) {
    using Part = typename Words<W>::Part;
    const Wide wide = __builtin_convertvector(words.part[i], Wide) * std::uint64_t{by};
    out.high.part[i] = __builtin_convertvector(wide >> 32, Part);
    out.low.part[i] = __builtin_convertvector(wide, Part);
  }
  return out;
}

// The first word of draw(seed, high << 32 | low, when, stream) for each lane.
template <int W>
SEAMFAST_INLINE Words<W> draw_lanes(std::uint64_t seed, const Words<W>& low, const Words<W>& high, std::uint32_t when,
                                    Stream stream) {
  if constexpr (W < kAvx512Width) {  // without a wide multiplication in registers, one by one is twice as fast
    std::uint32_t lows[kLanes], highs[kLanes], words[kLanes];
    store_lanes(lows, low);
    store_lanes(highs, high);
    for (int l = 0; l < kLanes; ++l)
      words[l] = draw(seed, std::uint64_t{highs[l]} << 32 | lows[l], when, stream)[0];
    return load_lanes<W>(words);
  }
  Words<W> c0 = low, c1 = high, c2 = all_lanes<W>(when), c3 = all_lanes<W>(static_cast<std::uint32_t>(stream));
  auto k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Product<W> a = product(c0, 0xD2511F53), b = product(c2, 0xCD9E8D57);
    c0 = b.high ^ c1 ^ k0;
    c2 = a.high ^ c3 ^ k1;
    c1 = b.low;
    c3 = a.low;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c0;
}

// below() of philox.h for each lane.
template <int W>
SEAMFAST_INLINE Words<W> below_lanes(const Words<W>& words, std::uint32_t bound) {
  return product(words, bound).high;
}

}  // namespace seamfast
