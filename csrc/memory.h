// Whether the C library keeps memory that a run frees.

#pragma once

namespace seamfast {

// Until as many calls with `false` as with `true` are made, freed memory stays with the process: by default glibc returns
// it to the system at every training step and faults it in again at the next, a quarter of a step of a small model.
// Afterwards free memory is returned, and the thresholds are those at which glibc's own adjustment ends. With another C
// library nothing happens.
void keep_freed_memory(bool keep);

}  // namespace seamfast
