"""The keys of SDXL's configs, with the defaults of configs/base.py."""

from ml_collections import ConfigDict

from persongen_jax.systems.diffusion import DiffusionSystem

# Keys that only some methods read.
METHOD_KEYS = (
    *("rank", "lora_alpha", "id_gain", "id_norm_gain", "image_proj", "image_lora_rank"),
    *("shortcut", "s_scale"),
    *("control", "control_drop_prob", "face_encoder", "text_drop_prob", "identity_drop_prob"),
    *("controlnet", "instantid_references", "face_point_radius"),
    *("facecdm_stage", "facecdm_attention", "facecdm_reduced"),
    *("bolid_body", "bolid_aggregate", "bolid_reduced"),
    *("pulid_version", "pulid_release", "pulid_mode", "pulid_zeros", "pulid_id_mix"),
    *("pulid_crop", "pulid_face_parser", "pulid_few_steps", "pulid_face_points"),
    *("pulid_sem", "pulid_layout", "pulid_id"),
    *("token", "instance_prompt", "caption_templates", "shuffle_captions", "keep_captions"),
    *("class_data", "class_prompt", "num_class_images", "class_guidance", "prior_loss_weight"),
    *("lora_targets", "lora_ranks", "lora_dora"),
    *("text_rank", "text_alpha", "text_targets", "text_ranks"),
    *("train_text_encoders", "num_vectors", "initializer", "embedding_steps", "embedding_norm"),
)

REFERENCES = ("auto", "face", "whole", "masked", "aligned")  # what they show
# What a validation may generate for: people seen in training, held out from it, and from elsewhere.
SETS = ("in_train", "out_of_train", "out_of_domain")


def sdxl_defaults() -> ConfigDict:
    """PhotoMaker on SDXL at 512, as the thesis' baseline trains it (section 5.1.8)."""
    config = DiffusionSystem.defaults()
    config.method = "photomaker"  # a name of methods/, or "package.module:Class"

    # Inputs: a diffusers-format SDXL directory, a CLIP image tower ("": the base's image_encoder
    # folder), a folder of images with a manifest.jsonl.
    config.base = ""
    # If ``base`` is a single file: the directory of its configs and tokenizers, whose weights fill
    # in for parts that the file lacks. Then replacements for parts of the base: a file or a
    # component's directory; for the text encoders a directory that has both.
    config.base_config = ""
    config.unet = ""
    config.vae = ""
    config.text_encoders = ""
    # What the UNet predicts ("epsilon", "v_prediction", "sample"); "": what the base says.
    config.prediction_type = ""
    config.id_encoder = ""
    config.data = ""
    config.loader = "tf_data"  # or "memory": no TensorFlow, one thread

    # Computation. Frozen weights are stored in ``dtype``; trained weights in float32.
    config.dtype = "bfloat16"
    config.vae_dtype = "float32"
    config.quantize = ""  # or "int8", "fp8": frozen kernels of UNet and text towers in 8 bits
    config.remat = False  # recompute the UNet's activations: less memory, more time

    # Data: the side of the target in pixels, the word that marks the class word in captions.
    config.size = 512
    config.trigger_word = "img"
    config.batch_size = 24  # over all devices
    config.random_crop = True  # if the image is large enough; False: the centre, or the face
    # Shapes of the target, () for squares of ``size``: "512" and "1024" are SDXL's families, others
    # are "WIDTHxHEIGHT"; see data_pipeline/examples/buckets.py.
    config.buckets = ()
    # The folder of the feature cache ("": none), and which features it keeps; see
    # docs/cache.md.
    config.cache = ""
    config.cache_kinds = ("moments", "references", "photographs", "bodies", "text")

    # The method's settings.
    config.rank = 64
    config.lora_alpha = 64.0
    config.id_gain = 1.0  # initial gain of the ID projections; above 1 the face acts sooner
    # Initial scale of the identity branch's tokens; below 1 an untrained branch disturbs less.
    config.id_norm_gain = 1.0
    # For ip_adapter: "base", "plus", "faceid" or "faceid-plus", and the rank of its LoRA (0: none).
    # The FaceID variants read faces by ``face_encoder``. FaceID Plus: whether the tokens of the
    # embedding are kept (version 2), and the factor of what CLIP adds to them.
    config.image_proj = "base"
    config.image_lora_rank = 0
    config.shortcut = True
    config.s_scale = 1.0
    # A ControlNet's image: "pose", a skeleton drawn from the keypoints where a record has no image
    # of this name; or the name of any other of the manifest's ``images``. And the probability with
    # which an example has it black instead, drawn apart from ``drop_prob``, the prompt's.
    config.control = "pose"
    config.control_drop_prob = 0.0
    # In addition to ``drop_prob``, the probabilities with which an example loses its prompt alone
    # and its identity alone; at most one of the three happens.
    config.text_drop_prob = 0.0
    config.identity_drop_prob = 0.0
    # InstantID, which reads faces by ``face_encoder``: the folder of its IdentityNet ("": a copy of
    # the UNet); what several references become, their "mean" or a "sequence" that is read; and the
    # radius in pixels of the points of the face that it draws, 10 for images of about 1024.
    config.controlnet = ""
    config.instantid_references = "mean"
    config.face_point_radius = 10
    # FaceCDM: the recogniser whose embeddings it reads; its stage, 1 to 3; "triplet": a branch each
    # for image and face, "joint": one for both; the width that embeddings are reduced to.
    config.face_encoder = ""
    config.facecdm_stage = 3
    config.facecdm_attention = "triplet"
    config.facecdm_reduced = 128
    # BoLID, which reads faces by ``face_encoder`` too: whether it has the body branch; how the
    # features of a group become one ("mean", "max", "attention"); their width.
    config.bolid_body = True
    config.bolid_aggregate = "mean"
    config.bolid_reduced = 128
    # PuLID, which reads faces by ``face_encoder`` and by EVA-CLIP, ``id_encoder``: "v1" or "v1.1".
    # The attention of a release ("fidelity", "style", "v1.1", "v1.1-lightning"; "": the version's
    # usual), or in its place a mode of models/id_attention.py and a number of zero tokens (-1: the
    # release's). Of v1 whether all tokens of further references are read. The side of the face
    # crops, and facexlib's parsing net for them ("": an ellipse).
    config.pulid_version = "v1"
    config.pulid_release = ""
    config.pulid_mode = ""
    config.pulid_zeros = -1
    config.pulid_id_mix = False
    config.pulid_crop = 512
    config.pulid_face_parser = ""
    # PuLID's losses on samples of so many steps (0: only the diffusion loss, its first stage),
    # their weights, and the net that finds the face of a sample, keypoints:DIR.
    config.pulid_few_steps = 0
    config.pulid_sem = 0.6
    config.pulid_layout = 0.1
    config.pulid_id = 1.0
    config.pulid_face_points = ""
    # Methods of one person (lora, dreambooth, textual_inversion, pivotal_tuning). The word for the
    # person: it comes before the class word where a caption has the trigger word, or for a word
    # that is learned in its place. One caption for all pictures ("": their own); or captions drawn
    # from templates; or their parts between commas in a new order, after the first
    # ``keep_captions``.
    config.token = ""
    config.instance_prompt = ""
    config.caption_templates = False
    config.shuffle_captions = False
    config.keep_captions = 1
    # Prior preservation: the folder of class images, what shows in them, how many are generated if
    # there are fewer, with which guidance (0: that of validations; 1 samples what the base has
    # learned as it is), and the weight of their loss.
    config.class_data = ""
    config.class_prompt = ""
    config.num_class_images = 100
    config.class_guidance = 0.0
    config.prior_loss_weight = 1.0
    # LoRA: its layers in the UNet, names of methods/personal/lora.py joined by "+" or a regular
    # expression; rows (expression, rank[, alpha]) of layers with other ranks, where alpha is by
    # default in proportion; DoRA. The same for both text towers: a rank of 0 is none there, an
    # alpha of 0 the rank.
    config.lora_targets = "attention"
    config.lora_ranks = ()
    config.lora_dora = False
    config.text_rank = 0
    config.text_alpha = 0.0
    config.text_targets = "attention"
    config.text_ranks = ()
    # DreamBooth: whether the text towers are trained too.
    config.train_text_encoders = False
    # Textual Inversion: the word's vectors in each tower, and the text whose embeddings they start
    # from ("": drawn). Pivotal tuning: the step after which they stay (0: never), and the power by
    # which their spread is drawn to that of the vocabulary (0: not).
    config.num_vectors = 1
    config.initializer = ""
    config.embedding_steps = 0
    config.embedding_norm = 0.0
    # Initial weights: PhotoMaker weights (photomaker-v1.bin), or the working directory of an
    # earlier run; see persongen_jax/methods/start.py.
    config.start_from = ""
    # The step of that run's checkpoint; 0: the newest when this run begins. Training fills it in,
    # so that the weights frozen here stay the same if that run is trained further.
    config.start_from_step = 0

    # What references show: "face", the square around the face box; "whole", whole images; "masked",
    # the face with grey around the person, by the image "mask" of each record; "aligned", the face
    # turned and scaled by its landmarks. "auto": faces if the data have face boxes, else whole
    # images. A run fills it in, and generate cuts alike.
    config.references = "auto"

    # The objective, in addition to the settings of all diffusion systems.
    config.face_loss_prob = 0.5  # per example: the loss over the face box only
    # The name of one of the manifest's ``images`` that is white where the loss counts ("": no such
    # mask), and how much it counts elsewhere.
    config.loss_mask = ""
    config.loss_mask_outside = 0.0

    # Losses on decoded images, of any method: {"keypoints": {"weight": 0.1, "noise_to": 0.5}};
    # names and settings are in docs/losses.md. The images are decoded from latents averaged over
    # squares of ``losses_downscale``. Then the networks that losses read, which must not be the
    # judges below: a pose network (keypoints:DIR or movenet:FILE.json), a whole CLIP, a recogniser.
    config.losses = ConfigDict()
    config.losses_downscale = 1
    config.loss_pose_net = ""
    config.loss_clip = ""
    config.loss_face_net = ""

    # A learning rate per group. Optimizers that estimate their rate (prodigy, dadapt_adamw, cocob)
    # multiply it by these: give 1.0. Schedule-free ones expect lr_schedule "constant".
    config.lr_projections = 1e-5
    config.lr_fuse_module = 1e-5
    config.lr_lora = 1e-5
    config.lr_id_encoder = 1e-5
    config.lr_background = 1e-5
    config.lr_body = 1e-5
    config.lr_identity = 1e-5
    config.lr_id_norm = 1e-4
    config.lr_controlnet = 1e-5
    config.lr_text_lora = 5e-6
    config.lr_unet = 1e-6
    config.lr_text_encoders = 1e-6
    config.lr_embeddings = 5e-4
    config.warmup_steps = 1000
    config.steps = 20_000

    # Validation.
    config.validation_every = 1000  # steps; 0: never
    # Images of people, each "" for none: a manifest folder, a shard folder, or drawn people such as
    # "people:out_of_train?identities=20&pictures=4". The first images are the references.
    config.validate_in_train = ""
    config.validate_out_of_train = ""
    config.validate_out_of_domain = ""
    config.validation_gallery = ""  # the people that rank-1 searches; usually 100
    config.validation_people = 10  # per set, at most
    config.validation_references = 1  # of a person's images, that the method reads
    # "thesis", "photomaker" or a JSON file, see persongen_jax/evaluation/prompts.py.
    config.validation_prompts = "thesis"
    config.validation_images = 5  # per person and prompt
    config.validation_size = 0  # side of the images in pixels; 0: ``size``
    config.validation_guidance = 5.0
    config.validation_merge_step = 10
    config.validation_negative_prompt = (
        "nsfw, lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer "
        "digits, cropped, worst quality, low quality, normal quality, jpeg artifacts, signature, "
        "watermark, username, blurry"
    )
    config.validation_batch = 0  # images at once; 0: four per device

    # Pictures to look at, of prompts of one's own, every ``sample_every`` steps (0: never): with
    # the references of the first person to validate on, or else of the data. {word} becomes that
    # person's class word. Steps, guidance and size are those of validations.
    config.sample_prompts = ()
    config.sample_every = 0
    config.sample_images = 1  # of each prompt
    config.sample_seed = 42

    # Judges.
    config.metrics = ("clip_t", "face_sim", "rank1_10", "rank1_100", "detection_rate")
    config.clip = ""  # a whole CLIP's directory or file for CLIP-T and CLIP-I; "": not measured
    # Image encoders of DINO and DINOv2 for DINO-I and DINOv2-I, a file or a folder.
    config.dino = ""
    config.dinov2 = ""
    # FID's Inception for FID, KID and Inception Score, and whose resize: "clean" (clean-fid),
    # "pytorch-fid" or "torch-fidelity", whose figures differ. LPIPS for diversity: a folder or a
    # file. The CLIP for CMMD, ViT-L/14 at 336 pixels; "": ``clip``.
    config.inception = ""
    config.fid_variant = "clean"
    config.lpips = ""
    config.cmmd_clip = ""
    # A face recogniser's file for Face-Sim; auto: SFace, where the extra "faces" is installed; "":
    # it is not measured.
    config.face_net = "auto"
    config.face_detector = "auto"
    # A pose network for Pose_acc, PCK and OKS, movenet:FILE or keypoints:DIR; "": not measured.
    config.pose_net = ""
    return config
