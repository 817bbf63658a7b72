"""What happens to the judges' image encoders and CLIPs: (kind, variant, what happens, test)."""

DINO = "tests/models/encoders/test_dino.py::test_"
CLIP = "tests/weights/formats/test_open_clip.py::test_"
SCRIPT = "tests/weights/files/test_torchscript.py::test_"
EVA = "tests/models/encoders/test_eva_clip.py::test_"
JUDGES = "tests/models/judges/test_judges.py::test_"
FILES = "tests/weights/formats/test_judges.py::test_"
IMAGES = "tests/metrics/images/test_image_similarity.py::test_"

ENTRIES = [
    ("DINO, DINOv2", "facebookresearch's .pth, and as .safetensors", "read",
     f"{DINO}all_layouts_hold_the_same"),
    ("DINO, DINOv2", "transformers' folder, names of versions 4 and 5", "read",
     f"{DINO}all_layouts_hold_the_same"),
    ("DINO, DINOv2", "images of another size than the positions", "interpolated as in the original",
     f"{DINO}facebookresearchs_files_and_their_positions"),
    ("DINO, DINOv2", "with registers, giant", "refused by name",
     f"{DINO}what_is_no_encoder_is_refused"),
    ("DINO, DINOv2", "a width without config.json that 64 does not divide",
     "refused; config.json named", f"{DINO}what_is_no_encoder_is_refused"),
    ("DINO, DINOv2", "one in place of the other", "refused; the right option named",
     f"{IMAGES}the_other_version_is_another_metric"),
    ("CLIP", "OpenAI's download, a TorchScript archive", "read",
     f"{CLIP}as_transformers_with_the_same_weights[openai]"),
    ("CLIP", "OpenCLIP's training checkpoint, text. and module.", "read",
     f"{CLIP}as_transformers_with_the_same_weights[openclip]"),
    ("CLIP", "OpenCLIP's folder with open_clip_config.json", "read; its heads, its activation",
     f"{CLIP}as_transformers_with_the_same_weights[folder]"),
    ("CLIP", "B/32, L/14, L/14-336, H/14, bigG/14", "sizes and heads by shapes",
     f"{CLIP}the_published_sizes"),
    ("CLIP", "quick GELU or GELU, which shapes do not show", "chosen by signs, with a line",
     f"{CLIP}which_activation"),
    ("CLIP", "a TorchScript archive that would run code", "refused, nothing executed",
     f"{SCRIPT}what_runs_code_is_refused"),
    ("CLIP", "a ResNet, one tower alone, no tokenizer next to it", "refused, with the remedy",
     f"{CLIP}what_is_no_such_clip_is_refused"),
    ("EVA-CLIP", "baaivision's .pt, OpenCLIP's and timm's files; the image tower alone", "read",
     f"{EVA}all_layouts_hold_the_same"),
    ("EVA-CLIP", "an image tower alone as the judge", "CLIP-I; a line says why no CLIP-T",
     f"{EVA}clip_i_by_the_image_tower_alone"),
    ("EVA-CLIP", "EVA-01's, bigE", "refused by name", f"{EVA}what_is_no_eva_clip_is_refused"),
    ("FID's Inception", "pytorch-fid's .pth", "read",
     f"{JUDGES}inception_as_torch_fidelity_and_pytorch_fid"),
    ("FID's Inception", "torchvision's own Inception-v3", "refused by name",
     f"{FILES}what_is_not_fids_inception_is_refused"),
    ("LPIPS", "a backbone of torchvision's and lpips' heads, or both in one file", "read",
     f"{FILES}lpips_in_one_file_and_in_two_is_the_same"),
    ("LPIPS", "a half alone, SqueezeNet, VGG19", "refused, with the remedy",
     f"{FILES}what_is_not_lpips_is_refused"),
    ("FaceNet", "facenet-pytorch's .pt, with its classes", "read",
     f"{FILES}facenet_without_counters_and_with_its_classes"),
]  # fmt: skip
