//! What a network's arithmetic is done by, and in which numbers: only combinations that exist.

use std::fmt;
use std::str::FromStr;

use super::{Build, Device, cuda};

/// What does the arithmetic on the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Provider {
    /// ONNX Runtime's own provider of the device.
    #[default]
    Default,
    /// Intel's OpenVINO, on the processor.
    OpenVino,
}

/// The numbers that a network is computed in. Its features are float32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// float32 throughout.
    #[default]
    Fp32,
    /// bfloat16 where the provider's kernels take it: 8 bits of mantissa, the range of float32.
    Bf16,
}

/// A setting of `[runtime]` that is none, or names what does not exist.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreal {
    /// No such provider.
    #[error("{0:?} is no provider; use default or openvino")]
    Provider(String),
    /// No such precision.
    #[error("{0:?} is no precision; use fp32, or bf16 with --provider openvino")]
    Precision(String),
    /// Half precision, which nothing here computes in.
    #[error(
        "fp16 is not real here: neither the CPU nor the CUDA provider of ONNX Runtime computes a float32 network in it, and \
         OpenVINO does on few processors only; use fp32, or bf16 with --provider openvino"
    )]
    Fp16,
    /// Integers, which ruin the features.
    #[error(
        "int8 is refused: it needs a network quantized on sample images, and the features suffer (measured on MobileNetV2: \
         cosine to fp32 0.45 per tensor, 0.989 per channel; bf16 keeps 0.999); use fp32, or bf16 with --provider openvino"
    )]
    Int8,
    /// bfloat16 without the one provider that has it.
    #[error(
        "bf16 is real with OpenVINO alone: the CPU and CUDA providers have no such mode; add --provider openvino, or use fp32"
    )]
    Bf16,
    /// OpenVINO and an NVIDIA card.
    #[error("provider openvino runs on the processor, not on {0}; leave out --device or --provider")]
    OpenVinoOn(Device),
}

impl FromStr for Provider {
    type Err = Unreal;

    fn from_str(text: &str) -> Result<Self, Unreal> {
        match text {
            "default" => Ok(Self::Default),
            "openvino" => Ok(Self::OpenVino),
            other => Err(Unreal::Provider(other.to_owned())),
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::OpenVino => "openvino",
        })
    }
}

impl FromStr for Precision {
    type Err = Unreal;

    fn from_str(text: &str) -> Result<Self, Unreal> {
        match text {
            "fp32" => Ok(Self::Fp32),
            "bf16" => Ok(Self::Bf16),
            "fp16" => Err(Unreal::Fp16),
            "int8" => Err(Unreal::Int8),
            other => Err(Unreal::Precision(other.to_owned())),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        })
    }
}

/// Device, provider and precision that go together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compute {
    device: Device,
    provider: Provider,
    precision: Precision,
}

impl Compute {
    /// float32 on the processor by ONNX Runtime itself: the reference, and what every build can do.
    pub const CPU: Self = Self { device: Device::Cpu, provider: Provider::Default, precision: Precision::Fp32 };

    /// Puts the three together.
    ///
    /// # Errors
    /// When there is no such combination; whether this machine has what it needs is not asked.
    pub fn new(device: Device, provider: Provider, precision: Precision) -> Result<Self, Unreal> {
        match (device, provider, precision) {
            (Device::Cuda(_), Provider::OpenVino, _) => Err(Unreal::OpenVinoOn(device)),
            (_, Provider::Default, Precision::Bf16) => Err(Unreal::Bf16),
            _ => Ok(Self { device, provider, precision }),
        }
    }

    /// What it runs on.
    pub fn device(self) -> Device {
        self.device
    }

    /// What does the arithmetic.
    pub fn provider(self) -> Provider {
        self.provider
    }

    /// The numbers it is done in.
    pub fn precision(self) -> Precision {
        self.precision
    }

    /// Name of the arithmetic in a store's key: `cpu`, `cuda`, `openvino`; none where it takes what it gets.
    pub fn class(self) -> Option<&'static str> {
        match (self.provider, self.device) {
            (Provider::OpenVino, _) => Some("openvino"),
            (Provider::Default, Device::Cpu) => Some("cpu"),
            (Provider::Default, Device::Cuda(_)) => Some("cuda"),
            (Provider::Default, Device::Auto) => None,
        }
    }

    /// Whether features of this class in a store's key may be its own.
    pub fn accepts(self, class: &str) -> bool {
        self.class().map_or_else(|| ["cpu", "cuda"].contains(&class), |own| own == class)
    }

    /// Builds of ONNX Runtime that serve, the best first; one before the last is taken where it is at hand.
    pub(super) fn builds(self) -> &'static [Build] {
        match self.class() {
            Some("openvino") => &[Build::OpenVino],
            Some("cuda") => &[Build::Cuda],
            Some(_) => &[Build::Cpu],
            None if cuda::missing(0).is_none() => &[Build::Cuda, Build::Cpu],
            None => &[Build::Cpu],
        }
    }

    /// What this machine lacks for it, whatever is installed; none if nothing.
    pub fn missing_hardware(self) -> Option<String> {
        match (self.device, self.precision) {
            (Device::Cuda(card), _) => cuda::missing(card),
            (_, Precision::Bf16) if !processor_has_bf16() => Some(
                "this processor has no bfloat16 instructions (avx512_bf16), so bf16 would be emulated and gain nothing"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.provider {
            Provider::Default => write!(f, "{}", self.device),
            Provider::OpenVino => write!(f, "openvino {}", self.precision),
        }
    }
}

/// Whether the processor multiplies bfloat16 numbers itself. Those with AMX do both.
pub fn processor_has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for provider in [Provider::Default, Provider::OpenVino] {
            assert_eq!(provider.to_string().parse(), Ok(provider));
        }
        for precision in [Precision::Fp32, Precision::Bf16] {
            assert_eq!(precision.to_string().parse(), Ok(precision));
        }
        assert!("tensorrt".parse::<Provider>().unwrap_err().to_string().contains("default or openvino"));
        assert!("fp8".parse::<Precision>().unwrap_err().to_string().contains("fp32"));
    }

    #[test]
    fn what_is_not_real_is_refused_with_what_is() {
        for text in ["fp16", "int8"] {
            let said = text.parse::<Precision>().unwrap_err().to_string();
            assert!(said.starts_with(text) && said.contains("use fp32, or bf16 with --provider openvino"), "{said}");
        }
        for device in [Device::Cpu, Device::Cuda(0), Device::Auto] {
            let said = Compute::new(device, Provider::Default, Precision::Bf16).unwrap_err().to_string();
            assert!(said.contains("--provider openvino"), "{said}");
        }
        let said = Compute::new(Device::Cuda(1), Provider::OpenVino, Precision::Fp32).unwrap_err().to_string();
        assert!(said.contains("cuda:1"), "{said}");
    }

    #[test]
    fn each_has_its_class_in_the_key() {
        let class = |device, provider| Compute::new(device, provider, Precision::Fp32).unwrap().class();
        assert_eq!(class(Device::Cpu, Provider::Default), Some("cpu"));
        assert_eq!(class(Device::Cuda(2), Provider::Default), Some("cuda"));
        assert_eq!(class(Device::Auto, Provider::Default), None);
        assert_eq!(class(Device::Auto, Provider::OpenVino), Some("openvino"));
        let auto = Compute::new(Device::Auto, Provider::Default, Precision::Fp32).unwrap();
        assert_eq!(["cpu", "cuda", "openvino"].map(|class| auto.accepts(class)), [true, true, false]);
        assert_eq!(["cpu", "cuda"].map(|class| Compute::CPU.accepts(class)), [true, false]);
    }
}
