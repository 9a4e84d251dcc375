//! What is measured of a piece of work.

/// One kind of number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Quantity {
    /// MiB/s as smbclient saw it, without connecting.
    Rate,
    /// The middle latency in microseconds.
    P50,
    /// The latency that one in a hundred exceeds, in microseconds.
    P99,
    /// CPU seconds of the proxy for each GiB, the whole connection included.
    CpuPerGib,
    /// CPU microseconds of the proxy for each operation.
    CpuPerOperation,
}

impl Quantity {
    pub(crate) const ALL: [Self; 5] =
        [Self::Rate, Self::P50, Self::P99, Self::CpuPerGib, Self::CpuPerOperation];

    /// Its name in the table, and how many decimals it has there.
    pub(crate) fn title(self) -> (&'static str, usize) {
        match self {
            Self::Rate => ("MiB/s", 0),
            Self::P50 => ("p50 us", 0),
            Self::P99 => ("p99 us", 0),
            Self::CpuPerGib => ("CPU s/GiB", 3),
            Self::CpuPerOperation => ("CPU us/op", 1),
        }
    }

    /// Its name in JSON.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Rate => "mib_per_second",
            Self::P50 => "p50_us",
            Self::P99 => "p99_us",
            Self::CpuPerGib => "cpu_seconds_per_gib",
            Self::CpuPerOperation => "cpu_us_per_operation",
        }
    }

    /// What Understudy's ratio to HAProxy should be in Relay. Of sealed frames a part has to be opened.
    pub(crate) fn aim(self, work: &str) -> Option<&'static str> {
        match self {
            Self::CpuPerGib if work.contains("sealed") => Some("at most 1.1"),
            Self::Rate => Some("at least 1.0"),
            Self::P50 => Some("at most 1.1"),
            Self::CpuPerGib => Some("at most 0.8"),
            Self::P99 | Self::CpuPerOperation => None,
        }
    }
}

/// What one round of some work on one road came to.
pub(crate) type Sample = std::collections::BTreeMap<Quantity, f64>;
