//! Our zlib clusters, inflated by the C library as QEMU does it: raw, with a window of 4 KiB, and here in small pieces.

mod common;

use common::{Random, have, ok};
use imgcore::qcow2::{ClusterCompressor, CompressionType};

/// Each record: how long the cluster and its stream are, 32 bits each, and both.
const INFLATE: &str = "
import struct, sys, zlib
def inflate(stream):
    inflater, out = zlib.decompressobj(-12), []
    while not inflater.eof:
        piece = inflater.decompress(stream, 1000)
        stream = inflater.unconsumed_tail
        assert piece or inflater.eof, 'cut off'
        out.append(piece)
    return b''.join(out), inflater.unused_data
# A match one byte too far back is seen.
noise = bytes(i * i * 40503 >> 9 & 255 for i in range(4097))
far = zlib.compressobj(9, zlib.DEFLATED, -15)
far = far.compress(noise * 2) + far.flush()
try:
    inflate(far)
    sys.exit('a window of more than 4 KiB')
except zlib.error:
    pass
data, at, seen = open(sys.argv[1], 'rb').read(), 0, 0
while at < len(data):
    size, packed = struct.unpack_from('<II', data, at)
    at += 8
    cluster, stream = data[at:at + size], data[at + size:at + size + packed]
    at += size + packed
    assert inflate(stream) == (cluster, b''), seen
    seen += 1
print(seen)
";

#[test]
fn zlib_inflates_our_clusters() {
    if !have("python3") {
        return;
    }
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let mut random = Random(6);
    let mut records = Vec::new();
    let mut count = 0;
    for round in 0..150 {
        let size = 512usize << random.below(9);
        let start = random.below((program.len() - size) as u64) as usize;
        let mut cluster = program[start..start + size].to_vec();
        match random.below(4) {
            0 => cluster[size / 3..].fill(random.next() as u8),
            1 => cluster[size / 2..].copy_from_slice(&random.bytes(size as u64)[size / 2..]),
            _ => {}
        }
        let mut compressor = ClusterCompressor::with_level(CompressionType::Zlib, Some(1 + round % 9));
        if let Some(packed) = compressor.compress(&cluster) {
            records.extend_from_slice(&(size as u32).to_le_bytes());
            records.extend_from_slice(&(packed.len() as u32).to_le_bytes());
            records.extend_from_slice(&cluster);
            records.extend_from_slice(packed);
            count += 1;
        }
    }
    assert!(count > 120, "{count} clusters became smaller");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("records"), records).unwrap();
    let seen = ok("python3", &["-c", INFLATE, "records"], dir.path());
    assert_eq!(seen.trim(), count.to_string());
}
