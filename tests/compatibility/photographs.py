"""What happens to one's own photographs: (kind, variant, what happens, test)."""

FOLDERS = "tests/data_pipeline/records/test_folders.py::test_"
BUILDING = "tests/data_pipeline/records/test_building.py::test_"
MANIFEST = "tests/data_pipeline/records/test_manifest.py::test_"
GENERATE = "tests/generate/test_generate_references.py::test_"
TRAINING = "tests/training/test_own_photographs.py::test_"
FOLDER, PHOTOS, REFERENCES = "folder of photographs", "own photographs", "references"

ENTRIES = [
    (FOLDER, "person/*.jpg", "read", f"{FOLDERS}a_folder_for_each_person"),
    (FOLDER, "images alone", "one person", f"{FOLDERS}images_alone_are_one_person"),
    (FOLDER, "kohya's 10_ohwx woman, captions in .txt", "read; repeats said to have no effect",
     f"{FOLDERS}kohyas_folders"),
    (FOLDER, "diffusers' instance and class folders", "read; class images left out, said",
     f"{FOLDERS}diffusers_instance_and_class_images"),
    (FOLDER, "Hugging Face's metadata.jsonl, metadata.csv", "read; unread keys named",
     f"{FOLDERS}hugging_faces_metadata"),
    (FOLDER, "faulty metadata", "refused with all lines",
     f"{FOLDERS}all_faults_of_the_metadata_with_their_lines"),
    (PHOTOS, "no manifest", "made from the folder, by train too", f"{TRAINING}a_folder_is_enough"),
    (PHOTOS, "faults of a manifest or of images", "told before the base is opened",
     f"{TRAINING}faults_are_told_before_the_base_is_opened"),
    (PHOTOS, "broken, a copy, on its side, without a face", "left out, said",
     f"{BUILDING}what_is_found_and_what_is_left_out"),
    (PHOTOS, "headers that cannot be read", "refused with their lines",
     f"{BUILDING}faults_of_pictures_are_listed_together_with_their_lines"),
    (PHOTOS, "a person in two Unicode forms, with a blank, in another case",
     "one person; another case is said", f"{MANIFEST}one_person_in_several_spellings"),
    (PHOTOS, "the Mac's decomposed names, backslashes, whole paths", "read",
     f"{MANIFEST}files_by_the_spellings_of_other_systems"),
    (PHOTOS, "without face boxes", "whole images, in training and in generate",
     f"{GENERATE}references_are_cut_as_the_run_was_trained"),
    (REFERENCES, "several files after one --reference, a folder", "read",
     f"{GENERATE}several_files_and_folders_are_one_person"),
    (REFERENCES, "--face-box", "cut there",
     f"{GENERATE}a_face_box_is_cut_like_a_face_that_was_found"),
    (REFERENCES, "--method-weights RUN/checkpoints/N", "read",
     f"{GENERATE}a_checkpoint_of_a_run_by_its_path"),
]  # fmt: skip
