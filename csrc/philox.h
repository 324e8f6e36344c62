// Philox4x32-10, the counter-based generator behind every random draw of seamfast.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
// Known answers: Random123's kat_vectors; tests/ops/test_philox.py holds them against this and against
// seamfast/ops/philox.py.
//
// A draw is a pure function of (key, counter): key = seed, counter = (sample id low, sample id high, epoch or step,
// stream). So it depends neither on the order of samples nor on batch size or thread count, and two streams never share
// a draw.

#pragma once

#include <array>
#include <cstdint>

namespace seamfast {

// Last counter word: the purpose of a draw. The same numbers stand in seamfast/ops/philox.py.
enum class Stream : std::uint32_t { kAugment = 1, kLabels = 2, kPlace = 16 };

// The streams of a rectangle pasted over an image: its sides, its kind, its colors, four channels each; and the blocks
// of 128 bits of its noise.
constexpr Stream occlude_stream(std::int64_t rectangle, std::uint32_t draw) noexcept {
  return static_cast<Stream>(32 + 1024 * static_cast<std::uint32_t>(rectangle) + draw);
}
constexpr Stream noise_stream(std::int64_t rectangle, std::int64_t block) noexcept {
  return static_cast<Stream>((static_cast<std::uint32_t>(rectangle) + 1) << 24 | static_cast<std::uint32_t>(block));
}

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

constexpr PhiloxCounter philox4x32(PhiloxCounter counter, PhiloxKey key) noexcept {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

constexpr PhiloxCounter draw(std::uint64_t seed, std::uint64_t sample_id, std::uint32_t when, Stream stream) noexcept {
  return philox4x32({static_cast<std::uint32_t>(sample_id), static_cast<std::uint32_t>(sample_id >> 32), when,
                     static_cast<std::uint32_t>(stream)},
                    {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
}

// Lemire's multiply-high: a 32-bit word to [0, bound). Biased by at most bound / 2^32, which no test can detect.
// Source: Lemire, "Fast Random Integer Generation in an Interval", ACM TOMACS 29(1), 2019 (without the rejection step).
constexpr std::uint32_t below(std::uint32_t word, std::uint32_t bound) noexcept {
  return static_cast<std::uint32_t>((std::uint64_t{word} * bound) >> 32);
}

}  // namespace seamfast
