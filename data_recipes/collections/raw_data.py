"""Open raw data: sources of real counts to be thinned."""

from data_recipes.collections.recipe import Download, Recipe

NEMA_MMR = Recipe(
    name="nema-mmr",
    title="NEMA image-quality phantom on a Siemens Biograph mMR: list mode, normalization, mu-map",
    layout="""NEMA_IQ.zip unpacks to a folder with PETLINK list mode (.l, .l.hdr), norm (.n) and a mu-map. petsim recipes
prepare nema-mmr --out DIR downloads and unpacks it; then petsim thin DIR/nema-mmr/.../NAME.l.hdr --drf 4 10
20 --out ladder.""",
    license="not verified here: see the record's page",
    access="""https://zenodo.org/record/1304454 (University College London). The checksum is the one that the scripts of
SIRF-Exercises check; size and license were not seen. petsim has not been run on this file.""",
    find=None,
    gives="raw",
    downloads=(
        Download(
            "https://zenodo.org/record/1304454/files/NEMA_IQ.zip", "NEMA_IQ.zip", "md5:ef848b8f6d5fd57b072a953b374ba4da"
        ),
    ),
)

PETRIC = Recipe(
    name="petric",
    title="PETRIC: phantoms on mMR, Vision 600, Discovery 690 and MI, Mediso and NeuroLF as sinograms",
    layout="""A folder a dataset with prompts, additive and multiplicative factors as Interfile (.hs). petsim thin reads
prompts.hs where its scanner is one with rings of blocks (petsim scanners).""",
    license="not verified here",
    access="""https://petric.tomography.stfc.ac.uk/data/ (see https://github.com/SyneRBI/PETRIC): get it with a browser.
No checksums and no license were seen, so petsim does not download it.""",
    find=None,
    gives="raw",
)
