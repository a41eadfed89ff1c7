//! Small files that are part of the program, so that they are there without a network and without the source tree.

use super::registry::AssetFile;

/// Name and content of each.
const EMBEDDED: &[(&str, &[u8])] = &[("quickstart.onnx", include_bytes!("../../models/quickstart.onnx"))];

/// The content of a registered file that is built in.
pub(super) fn content(file: &AssetFile) -> Option<&'static [u8]> {
    EMBEDDED.iter().find(|(name, _)| *name == file.name).map(|(_, bytes)| *bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assets::checksum::sha256_of;
    use crate::assets::registry::Registry;

    #[test]
    fn built_in_files_are_those_of_the_registry() {
        let registry = Registry::built_in().unwrap();
        for (name, bytes) in EMBEDDED {
            let file = &registry.model(name.trim_end_matches(".onnx")).unwrap().file;
            assert_eq!((bytes.len() as u64, sha256_of(bytes)), (file.bytes, file.sha256.clone()), "{name}");
            assert_eq!(content(file), Some(*bytes));
        }
    }
}
