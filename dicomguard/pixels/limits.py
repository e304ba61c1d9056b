"""How much of anything one instance may ask for. Every bound has its unit in its name, and its reason beside it."""

from __future__ import annotations

from dataclasses import dataclass

_MEBI = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Product caps for reading one instance, checked before anything is allocated.

    The defaults admit what modalities make (mammograms of 20 million pixels, enhanced series of thousands of frames,
    cine runs of a gigabyte) and refuse what only an attack or a defect asks for.
    """

    # A file is mapped, not read, but it counts against the address space.
    max_file_bytes: int = 2048 * _MEBI
    # Deflated data sets: zlib turns 1 MB into 1 GB. No modality deflates image data of this size.
    max_inflated_bytes: int = 128 * _MEBI
    # Rows x Columns x Samples per Pixel of one frame; 16384 x 16384 bombs are over it.
    max_samples_per_frame: int = 100_000_000
    max_frames: int = 100_000
    # All frames of one instance, as they would be uncompressed.
    max_pixel_bytes: int = 16 * 1024 * _MEBI
    # Elements and items of one data set; an enhanced MR with 5000 frames has about 300,000.
    max_elements: int = 400_000
    # Sequences in sequences: structured reports reach about ten.
    max_depth: int = 32
    # Lookup tables, descriptions and attributes; 3 x 65536 entries of 2 bytes are 384 KiB.
    max_value_bytes: int = 4 * _MEBI
    # Fragments of one encapsulated Pixel Data.
    max_fragments: int = 400_000
    # Processor time for parsing one instance or decoding one small frame. Malformed files end here, within two seconds.
    base_cpu_s: float = 1.2
    # More of it for what is honestly large: JPEG 2000, the slowest, decodes 7 million samples a second, hashing 1 GB.
    samples_per_cpu_s: float = 2e6
    bytes_per_cpu_s: float = 150e6
    max_cpu_s: float = 60.0
    # The wall clock may run ahead of the processor time by this factor where the machine is busy or the disk slow.
    wall_factor: float = 5.0
    # Address space of the decoding process, its libraries and the mapped file included.
    max_memory_bytes: int = 5 * 1024 * _MEBI

    def cpu_s(self, samples: int = 0, size_bytes: int = 0) -> float:
        """Processor time that reading so much may take."""
        wanted = self.base_cpu_s + samples / self.samples_per_cpu_s + size_bytes / self.bytes_per_cpu_s
        return min(wanted, self.max_cpu_s)

    def wall_s(self, cpu_s: float) -> float:
        """Time on the wall after which the decoder is given up."""
        return min(cpu_s, self.max_cpu_s) * self.wall_factor
