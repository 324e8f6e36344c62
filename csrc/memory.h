// What the C library does with memory that a run frees.

#pragma once

namespace seamfast {

// Until as many `false` as `true` have come, freed memory stays with the process: by default glibc gives it back to the
// system at every training step and faults it in again at the next, a quarter of a step of a small model. Afterwards what
// is free goes back, and the thresholds are those that glibc's own adjustment ends at. Nothing happens with another C
// library.
void keep_freed_memory(bool keep);

}  // namespace seamfast
