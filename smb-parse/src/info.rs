//! The classes of QUERY_INFO, SET_INFO and QUERY_DIRECTORY by name (MS-FSCC 2.4, 2.5).

use crate::cmd::query_info::{FILE, FILESYSTEM, QUOTA, SECURITY};

/// FileInformationClass (MS-FSCC 2.4).
const FILE_CLASSES: [(u8, &str); 59] = [
    (1, "FileDirectoryInformation"),
    (2, "FileFullDirectoryInformation"),
    (3, "FileBothDirectoryInformation"),
    (4, "FileBasicInformation"),
    (5, "FileStandardInformation"),
    (6, "FileInternalInformation"),
    (7, "FileEaInformation"),
    (8, "FileAccessInformation"),
    (9, "FileNameInformation"),
    (10, "FileRenameInformation"),
    (11, "FileLinkInformation"),
    (12, "FileNamesInformation"),
    (13, "FileDispositionInformation"),
    (14, "FilePositionInformation"),
    (15, "FileFullEaInformation"),
    (16, "FileModeInformation"),
    (17, "FileAlignmentInformation"),
    (18, "FileAllInformation"),
    (19, "FileAllocationInformation"),
    (20, "FileEndOfFileInformation"),
    (21, "FileAlternateNameInformation"),
    (22, "FileStreamInformation"),
    (23, "FilePipeInformation"),
    (24, "FilePipeLocalInformation"),
    (25, "FilePipeRemoteInformation"),
    (26, "FileMailslotQueryInformation"),
    (27, "FileMailslotSetInformation"),
    (28, "FileCompressionInformation"),
    (29, "FileObjectIdInformation"),
    (31, "FileMoveClusterInformation"),
    (32, "FileQuotaInformation"),
    (33, "FileReparsePointInformation"),
    (34, "FileNetworkOpenInformation"),
    (35, "FileAttributeTagInformation"),
    (36, "FileTrackingInformation"),
    (37, "FileIdBothDirectoryInformation"),
    (38, "FileIdFullDirectoryInformation"),
    (39, "FileValidDataLengthInformation"),
    (40, "FileShortNameInformation"),
    (44, "FileSfioReserveInformation"),
    (45, "FileSfioVolumeInformation"),
    (46, "FileHardLinkInformation"),
    (48, "FileNormalizedNameInformation"),
    (50, "FileIdGlobalTxDirectoryInformation"),
    (54, "FileStandardLinkInformation"),
    (59, "FileIdInformation"),
    (60, "FileIdExtdDirectoryInformation"),
    (63, "FileIdExtdBothDirectoryInformation"),
    (64, "FileDispositionInformationEx"),
    (65, "FileRenameInformationEx"),
    (68, "FileStatInformation"),
    (70, "FileStatLxInformation"),
    (71, "FileCaseSensitiveInformation"),
    (72, "FileLinkInformationEx"),
    (78, "FileId64ExtdDirectoryInformation"),
    (79, "FileId64ExtdBothDirectoryInformation"),
    (80, "FileIdAllExtdDirectoryInformation"),
    (81, "FileIdAllExtdBothDirectoryInformation"),
    (100, "FilePosixInformation"),
];

/// FsInformationClass (MS-FSCC 2.5).
const FILESYSTEM_CLASSES: [(u8, &str); 12] = [
    (1, "FileFsVolumeInformation"),
    (2, "FileFsLabelInformation"),
    (3, "FileFsSizeInformation"),
    (4, "FileFsDeviceInformation"),
    (5, "FileFsAttributeInformation"),
    (6, "FileFsControlInformation"),
    (7, "FileFsFullSizeInformation"),
    (8, "FileFsObjectIdInformation"),
    (9, "FileFsDriverPathInformation"),
    (10, "FileFsVolumeFlagsInformation"),
    (11, "FileFsSectorSizeInformation"),
    (100, "FileFsPosixInformation"),
];

/// The name of a class of an InfoType, if it is one of the known.
pub fn name(info_type: u8, class: u8) -> Option<&'static str> {
    let find =
        |classes: &[(u8, &'static str)]| classes.iter().find(|(c, _)| *c == class).map(|(_, name)| *name);
    match info_type {
        FILE => find(&FILE_CLASSES),
        FILESYSTEM => find(&FILESYSTEM_CLASSES),
        // These two have no classes (MS-SMB2 2.2.37).
        SECURITY => Some("SecurityInformation"),
        QUOTA => Some("QuotaInformation"),
        _ => None,
    }
}
