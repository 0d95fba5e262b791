"""What records from before version 4 of the schema do not say, so that they stay the records of their runs.

Until then a run's id hashed defaults of Lightning's Trainer, data was known by the names of its samples only, and a
record did not say what its recipe was. These are the labels of the miniatures, which have not changed since, and the
recipes of that time.
"""

#: {name of the data/split/first digits of the checksum of its names: SHA-256 of its labels}
LABELS: dict[str, str] = {
    "imagenet-mini-v1/train/ab1e7b05ed35": "de91f8824e73c0a8827f6c71a3149334d7cf5a2b4c53cc194078a153945deac4",
    "imagenet-mini-v1/val/cfd72c0451f5": "de91f8824e73c0a8827f6c71a3149334d7cf5a2b4c53cc194078a153945deac4",
    "something-mini-v1/train/2af088252d98": "1fd8a111d8fd1b844021a27fd3894fa08d865659819526c57a94fdc123f52aa1",
    "something-mini-v1/val/65a39e969607": "e1a8f64d57276e25430902c06328356a112e381e413c18af9b77e0f1b3095ffc",
    "voc-mini-v1/train/b9f352c24c1a": "0268aeefede35da2732400f0e6f4b64912301ec8380a35740c57128c92730a9e",
    "voc-mini-v1/val/109dbb99387e": "aed22b4021a0959741ce47445f9a090cea637525138519571b464cf9ccfd7948",
    "modelnet40-mini-v1/train/780a1931ffcc": "d8ff32e75e4548941d2508c1abf40e62f624a0b00e5bbc7ab8e937b9e48f741b",
    "modelnet40-mini-v1/val/2dd4c7dcbb97": "df3b81a80026c8ebe62763048283c96ca1b627b246ea354c1084ac883be2cfe2",
    "coco-mini-v1/train/b57b1499e5bf": "051e7e26f661d49bb6b1f23023ff872c86897534b541c4d7e5df6e9318a6ef1d",
    "coco-mini-v1/val/28b8059c5766": "41bd16e1ee90c20135836318050d5d984fa84324a2ffce087ee3b62acf010794",
}
#: {task/recipe: SHA-256 of the recipe's content}
RECIPES: dict[str, str] = {
    "imagenet/mini": "d3460a863fe5d1902339618d4b7d67395c123bdc23ee7f750ad2a417ca492391",
    "something/mini": "c7a23c4bc44865633e1aedc1af0b054558cb5609d240bedf901beafed14a4658",
    "voc/mini": "ad12c217ef7d505f28ce68141e2e2bd9bca087b24a5894a7b657eb33ca557a53",
    "modelnet40/mini": "6b8d735eff16449978670d2ae405e485e9fbbf20ae41aa92787bece6b7de996e",
    "coco/mini": "8994eaec8c1863fc128774fe29e58ecbacd6f0fa3f8d82dab2812f6d7331b09a",
}
