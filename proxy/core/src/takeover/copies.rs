//! Whether a server-side copy or clone does the same when it is done again: it does, as long as it does not write what it
//! reads. Apart, for the ranges hide in the payload.

use smb_parse::{FileId, cmd::ioctl, fsctl};

use crate::link::open::{Open, Opens};

/// What is copied: where from, where to, how many bytes.
type Range = (u64, u64, u64);

/// Whether an IOCTL may be done twice. Its FileIds are the client's.
pub(super) fn is_repeatable(asked: &ioctl::Request<'_>, opens: &Opens) -> bool {
    let (source, ranges) = match asked.ctl_code {
        fsctl::SRV_COPYCHUNK | fsctl::SRV_COPYCHUNK_WRITE => (0, chunks(asked.input)),
        fsctl::DUPLICATE_EXTENTS => (0, extent(asked.input, 16)),
        fsctl::DUPLICATE_EXTENTS_EX => (8, extent(asked.input, 24)),
        code => return fsctl::is_repeatable(code),
    };
    let id = asked.input.get(source..).and_then(|rest| rest.first_chunk()).copied().map(FileId::from_bytes);
    let files = id.and_then(|id| opens.by_client(id)).zip(opens.by_client(asked.file_id));
    // Refused by every node.
    let Some(ranges) = ranges else { return true };
    files.is_some_and(|(from, to)| are_others(from, to)) || is_apart(&ranges)
}

/// Whether two Opens are surely of two files.
fn are_others(one: &Open, other: &Open) -> bool {
    match (one.on_disk_id, other.on_disk_id) {
        (Some(one), Some(other)) => one.get(..8) != other.get(..8),
        _ => !one.birth.can_be(other.birth) && !other.birth.can_be(one.birth),
    }
}

/// Whether nothing that is read is written.
fn is_apart(ranges: &[Range]) -> bool {
    let touch = |(from, _, read): &Range, (_, to, written): &Range| {
        *from < to.saturating_add(*written) && *to < from.saturating_add(*read)
    };
    !ranges.iter().any(|one| ranges.iter().any(|other| touch(one, other)))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

/// SRV_COPYCHUNK_COPY (MS-SMB2 2.2.31.1).
fn chunks(input: &[u8]) -> Option<Vec<Range>> {
    let count = input.get(24..)?.first_chunk().copied().map(u32::from_le_bytes)?;
    let chunks = input.get(32..)?.chunks_exact(24).take(usize::try_from(count).ok()?);
    chunks
        .map(|chunk| {
            let length = chunk.get(16..)?.first_chunk().copied().map(u32::from_le_bytes)?;
            Some((u64_at(chunk, 0)?, u64_at(chunk, 8)?, length.into()))
        })
        .collect()
}

/// SourceFileOffset, TargetFileOffset and ByteCount (MS-FSCC 2.3.7, 2.3.9).
fn extent(input: &[u8], at: usize) -> Option<Vec<Range>> {
    Some(vec![(u64_at(input, at)?, u64_at(input, at + 8)?, u64_at(input, at + 16)?)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_writes_what_it_reads_is_not_done_twice() {
        let rows: [(&[Range], bool); 6] = [
            (&[(0, 8, 8)], true),
            (&[(8, 0, 8)], true),
            (&[(0, 7, 8)], false),
            (&[(7, 0, 8)], false),
            (&[(0, 100, 8), (100, 200, 8)], false),
            (&[], true),
        ];
        for (ranges, apart) in rows {
            assert_eq!(is_apart(ranges), apart, "{ranges:?}");
        }
    }

    #[test]
    fn the_ranges_of_copies_and_clones() {
        let mut copy = vec![0; 24];
        copy.extend([2, 0, 0, 0, 0, 0, 0, 0]);
        for (from, to, length) in [(1_u64, 2_u64, 3_u32), (4, 5, 6)] {
            copy.extend(from.to_le_bytes());
            copy.extend(to.to_le_bytes());
            copy.extend(length.to_le_bytes());
            copy.extend([0; 4]);
        }
        assert_eq!(chunks(&copy), Some(vec![(1, 2, 3), (4, 5, 6)]));
        assert_eq!(chunks(&copy[..30]), None);
        let clone = [[9_u64; 2].map(u64::to_le_bytes).concat(), [7_u64, 8, 9].map(u64::to_le_bytes).concat()];
        assert_eq!(extent(&clone.concat(), 16), Some(vec![(7, 8, 9)]));
        assert_eq!(extent(&clone.concat()[..39], 16), None);
    }
}
