//! The initrd: a cpio archive in the "newc" format, which Linux reads and which our host kernel
//! finds its guest payload in.
//!
//! Every entry is a header of 13 eight-digit hexadecimal fields behind a magic, then the name with
//! a terminating zero, then the content, each padded to four bytes. The last entry is named
//! `TRAILER!!!`. Owner, times and inode carry nothing here, so equal input gives an equal archive.

const MAGIC: &str = "070701";
/// A regular file that may be executed: Linux wants that of its first program.
const REGULAR_FILE: u32 = 0o100_755;
const TRAILER: &str = "TRAILER!!!";

/// An archive of regular files, in the order given.
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (inode, (name, content)) in (1..).zip(files) {
        entry(&mut out, inode, REGULAR_FILE, name, content);
    }
    entry(&mut out, 0, 0, TRAILER, &[]);
    out
}

fn entry(out: &mut Vec<u8>, inode: u32, mode: u32, name: &str, content: &[u8]) {
    let size = u32::try_from(content.len()).expect("a file in an initrd is smaller than 4 GiB");
    let name_size = u32::try_from(name.len() + 1).expect("a file name is shorter than 4 GiB");
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    out.extend_from_slice(MAGIC.as_bytes());
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(content);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back by the format's description.
    fn read(mut data: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        loop {
            assert_eq!(&data[..6], b"070701");
            let field = |i: usize| {
                let digits = std::str::from_utf8(&data[6 + 8 * i..14 + 8 * i]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            let name = std::str::from_utf8(&data[110..110 + name_size - 1]).unwrap();
            assert_eq!(data[110 + name_size - 1], 0);
            let start = (110 + name_size).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(data.len(), start);
                return files;
            }
            files.push((name.to_owned(), data[start..start + size].to_vec()));
            data = &data[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn files_of_every_padding_come_back() {
        let content = [7_u8; 9];
        let names = ["a", "ab", "abc", "abcd", "guest"];
        let files: Vec<_> =
            (0..10).map(|i| (names[i % names.len()], &content[..i.min(9)])).collect();
        let back = read(&archive(&files));
        assert_eq!(back.len(), files.len());
        for ((name, content), (back_name, back_content)) in files.iter().zip(&back) {
            assert_eq!((*name, *content), (back_name.as_str(), back_content.as_slice()));
        }
    }
}
