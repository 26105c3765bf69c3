//! The programs that make and change whole disks, on disks that the distribution's own tools made, and judged by them.

mod disk;
mod format;
mod make_fs;
mod resize;
mod sparsify;
