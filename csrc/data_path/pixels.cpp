#include "data_path/pixels.h"

namespace seamfast {
namespace {

using std::int64_t;

// kVectors: whether vectors are wide enough for computing to be faster than looking up.
template <bool kVectors>
SEAMFAST_INLINE bool matches_element(const PixelsOut& to, int64_t channel) {
  switch (to.element) {
    case Element::kFloat32:
      return matches<kVectors, Float32>(to, channel);
    case Element::kBFloat16:
      return matches<kVectors, BFloat16>(to, channel);
    case Element::kFloat16:
      return matches<kVectors, Float16>(to, channel);
  }
  return false;
}

#if defined(SEAMFAST_X86_LEVELS)
constexpr bool kBaselineVectors = false;  // SSE2 has 128 bits and widens bytes in two steps
#else
constexpr bool kBaselineVectors = true;
#endif

bool matches_baseline(const PixelsOut& to, int64_t channel) { return matches_element<kBaselineVectors>(to, channel); }
#if defined(SEAMFAST_X86_LEVELS)
SEAMFAST_TARGET_AVX2 bool matches_avx2(const PixelsOut& to, int64_t channel) {
  return matches_element<true>(to, channel);
}
SEAMFAST_TARGET_AVX512 bool matches_avx512(const PixelsOut& to, int64_t channel) {
  return matches_element<true>(to, channel);
}
#endif

auto matches_of(Isa isa) noexcept {
#if defined(SEAMFAST_X86_LEVELS)
  if (isa == Isa::kAvx512) return matches_avx512;
  if (isa == Isa::kAvx2) return matches_avx2;
#endif
  static_cast<void>(isa);
  return matches_baseline;
}

}  // namespace

std::array<bool, kMaxChannels> computed_channels(const PixelsOut& to, Isa isa) {
  std::array<bool, kMaxChannels> computed{};
  const auto matches = matches_of(isa);
  for (int64_t c = 0; c < to.channels; ++c) computed[static_cast<std::size_t>(c)] = matches(to, c);
  return computed;
}

}  // namespace seamfast
