//! FSCTL codes (MS-SMB2 2.2.31, MS-FSCC 2.3, MS-RSVD 2.2.2) and where FileIds hide in their payloads.

macro_rules! codes {
    ($($name:ident = $code:literal,)*) => {
        $(
            #[allow(missing_docs, reason = "the names are those of MS-FSCC 2.3")]
            pub const $name: u32 = $code;
        )*

        /// The code's name, if it is one of the known.
        pub fn name(code: u32) -> Option<&'static str> {
            match code {
                $($name => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

codes! {
    DFS_GET_REFERRALS = 0x0006_0194,
    DFS_GET_REFERRALS_EX = 0x0006_01b0,
    IS_PATHNAME_VALID = 0x0009_002c,
    GET_COMPRESSION = 0x0009_003c,
    QUERY_FAT_BPB = 0x0009_0058,
    FILESYSTEM_GET_STATISTICS = 0x0009_0060,
    GET_NTFS_VOLUME_DATA = 0x0009_0064,
    GET_RETRIEVAL_POINTERS = 0x0009_0073,
    FIND_FILES_BY_SID = 0x0009_008f,
    SET_OBJECT_ID = 0x0009_0098,
    GET_OBJECT_ID = 0x0009_009c,
    DELETE_OBJECT_ID = 0x0009_00a0,
    SET_REPARSE_POINT = 0x0009_00a4,
    GET_REPARSE_POINT = 0x0009_00a8,
    DELETE_REPARSE_POINT = 0x0009_00ac,
    SET_OBJECT_ID_EXTENDED = 0x0009_00bc,
    CREATE_OR_GET_OBJECT_ID = 0x0009_00c0,
    SET_SPARSE = 0x0009_00c4,
    SET_ENCRYPTION = 0x0009_00d7,
    READ_FILE_USN_DATA = 0x0009_00eb,
    WRITE_USN_CLOSE_RECORD = 0x0009_00ef,
    MARK_HANDLE = 0x0009_00fc,
    SIS_COPYFILE = 0x0009_0100,
    RECALL_FILE = 0x0009_0117,
    QUERY_SPARING_INFO = 0x0009_0138,
    QUERY_ON_DISK_VOLUME_INFO = 0x0009_013c,
    SET_ZERO_ON_DEALLOCATION = 0x0009_0194,
    SET_SHORT_NAME_BEHAVIOR = 0x0009_01b4,
    GET_INTEGRITY_INFORMATION = 0x0009_027c,
    QUERY_FILE_REGIONS = 0x0009_0284,
    QUERY_SHARED_VIRTUAL_DISK_SUPPORT = 0x0009_0300,
    SVHDX_SYNC_TUNNEL_REQUEST = 0x0009_0304,
    SVHDX_ASYNC_TUNNEL_REQUEST = 0x0009_0364,
    SET_INTEGRITY_INFORMATION_EX = 0x0009_0380,
    GET_RETRIEVAL_POINTERS_AND_REFCOUNT = 0x0009_03d3,
    GET_RETRIEVAL_POINTER_COUNT = 0x0009_042b,
    REFS_STREAM_SNAPSHOT_MANAGEMENT = 0x0009_0440,
    QUERY_ALLOCATED_RANGES = 0x0009_40cf,
    OFFLOAD_READ = 0x0009_4264,
    SET_ZERO_DATA = 0x0009_80c8,
    SET_DEFECT_MANAGEMENT = 0x0009_8134,
    FILE_LEVEL_TRIM = 0x0009_8208,
    OFFLOAD_WRITE = 0x0009_8268,
    DUPLICATE_EXTENTS = 0x0009_8344,
    DUPLICATE_EXTENTS_EX = 0x0009_83e8,
    SET_COMPRESSION = 0x0009_c040,
    SET_INTEGRITY_INFORMATION = 0x0009_c280,
    PIPE_WAIT = 0x0011_0018,
    PIPE_PEEK = 0x0011_400c,
    PIPE_TRANSCEIVE = 0x0011_c017,
    SRV_REQUEST_RESUME_KEY = 0x0014_0078,
    LMR_SET_LINK_TRACKING_INFORMATION = 0x0014_00ec,
    LMR_REQUEST_RESILIENCY = 0x0014_01d4,
    QUERY_NETWORK_INTERFACE_INFO = 0x0014_01fc,
    VALIDATE_NEGOTIATE_INFO = 0x0014_0204,
    SRV_ENUMERATE_SNAPSHOTS = 0x0014_4064,
    SRV_COPYCHUNK = 0x0014_40f2,
    SRV_READ_HASH = 0x0014_41bb,
    SRV_COPYCHUNK_WRITE = 0x0014_80f2,
}

/// Whether doing it twice is the same as doing it once.
pub fn is_repeatable(code: u32) -> bool {
    matches!(
        code,
        DFS_GET_REFERRALS
            | DFS_GET_REFERRALS_EX
            | GET_REPARSE_POINT
            | GET_OBJECT_ID
            | CREATE_OR_GET_OBJECT_ID
            | SET_SPARSE
            | SET_ZERO_DATA
            | QUERY_ALLOCATED_RANGES
            | FILE_LEVEL_TRIM
            | GET_COMPRESSION
            | SET_COMPRESSION
            | GET_INTEGRITY_INFORMATION
            | SET_INTEGRITY_INFORMATION
            | QUERY_FILE_REGIONS
            | GET_NTFS_VOLUME_DATA
            | FILESYSTEM_GET_STATISTICS
            | READ_FILE_USN_DATA
            | IS_PATHNAME_VALID
            | SRV_ENUMERATE_SNAPSHOTS
            | SRV_REQUEST_RESUME_KEY
            | SRV_READ_HASH
            | VALIDATE_NEGOTIATE_INFO
    )
}

/// Where in a request's input a FileId stands: a resume key (MS-SMB2 2.2.31.1) or the source of a clone
/// (MS-FSCC 2.3.7, 2.3.9; the Ex form has its size before it).
pub fn input_file_id(code: u32) -> Option<usize> {
    match code {
        SRV_COPYCHUNK | SRV_COPYCHUNK_WRITE | DUPLICATE_EXTENTS => Some(0),
        DUPLICATE_EXTENTS_EX => Some(8),
        _ => None,
    }
}

/// Where in an answer's output a FileId stands: the resume key (MS-SMB2 2.2.32.3).
pub fn output_file_id(code: u32) -> Option<usize> {
    (code == SRV_REQUEST_RESUME_KEY).then_some(0)
}
